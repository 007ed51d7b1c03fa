% Accuracy against DLW's two settings in MATLAB or GNU Octave, from the CSV files of hp.py: as published and,
% where hp.py was given runs, theirs laid over. The same as hp.py draws.
%
%   octave-cli show_result/hyperparameters/hp.m
%
% Writes hp_m.png beside this file, or to the folder that the environment variable HP_FOLDER names, where the
% CSV files are then looked for as well.

folder = getenv('HP_FOLDER');
if isempty(folder), folder = fileparts(mfilename('fullpath')); end
panels = {'oh_memory_size', 'oh_step_coarse', 'oh_step_fine'};
labels = {'oh_memory_size', 'oh_step', 'oh_step'};

figure('visible', 'off', 'position', [0 0 1050 310]);
for k = 1:numel(panels)
    published = csvread(fullfile(folder, [panels{k} '.csv']), 1, 0);
    subplot(1, 3, k);
    plot(published(:, 1), published(:, 2), 'o-', 'color', [63 144 218] / 255);
    xlabel(labels{k}, 'interpreter', 'none');
    ylabel('test accuracy, % (published, best epoch)');
    runs = fullfile(folder, [panels{k} '_runs.csv']);
    if exist(runs, 'file')
        mine = csvread(runs, 1, 0);
        hold on;
        errorbar(mine(:, 1), mine(:, 2), mine(:, 3), 's--');
        hold off;
        legend('published', 'these runs, last epoch', 'location', 'southoutside');
    end
    box('off');
end
print('-dpng', '-r150', fullfile(folder, 'hp_m.png'));
