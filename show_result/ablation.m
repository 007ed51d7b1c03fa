% The figures of the ablation in MATLAB or GNU Octave, from the CSV files of show_points_ablation.py:
% a t-SNE panel and the samples of each class for each variant.
%
%   octave-cli show_result/ablation.m
%
% Writes ablation_points_m.png and ablation_counts_m.png beside this file. The environment variable
% ABLATION_POINTS names another folder of CSV files, ABLATION_OUTPUT another folder for the figures.

here = fileparts(mfilename('fullpath'));
folder = getenv('ABLATION_POINTS');
if isempty(folder), folder = fullfile(here, 'ablation_points'); end
output = getenv('ABLATION_OUTPUT');
if isempty(output), output = here; end

files = dir(fullfile(folder, '*_points.csv'));
if isempty(files)
    error('no *_points.csv in %s: write some with show_points_ablation.py', folder);
end
tags = sort(arrayfun(@(file) strrep(file.name, '_points.csv', ''), files, 'UniformOutput', false));
columns = min(4, numel(tags));
rows = ceil(numel(tags) / columns);
% Petroff (2021), "Accessible color sequences for data visualization".
colors = [63 144 218; 255 169 14; 189 31 1; 148 164 162; 131 45 182; 169 107 89; 231 99 0; 185 172 112; ...
          113 117 129; 146 218 221] / 255;

figure('visible', 'off', 'position', [0 0 260 * columns 270 * rows]);
for k = 1:numel(tags)
    points = csvread(fullfile(folder, [tags{k} '_points.csv']), 1, 1);
    targets = csvread(fullfile(folder, [tags{k} '_targets.csv']), 1, 1);
    subplot(rows, columns, k);
    hold on;
    for label = 0:max(targets)
        rows_of = targets == label;
        color = colors(mod(label, size(colors, 1)) + 1, :);
        plot(points(rows_of, 1), points(rows_of, 2), '.', 'color', color, 'markersize', 3);
    end
    hold off;
    axis('equal');
    set(gca, 'xtick', [], 'ytick', []);
    box('on');
    title(sprintf('%s  (%d points)', tags{k}, size(points, 1)), 'interpreter', 'none');
end
print('-dpng', '-r150', fullfile(output, 'ablation_points_m.png'));

figure('visible', 'off', 'position', [0 0 260 * columns 190 * rows]);
for k = 1:numel(tags)
    file = fullfile(folder, [tags{k} '_counts.csv']);
    if exist(file, 'file')
        counts = csvread(file, 1, 1);
    else
        targets = csvread(fullfile(folder, [tags{k} '_targets.csv']), 1, 1);
        counts = accumarray(targets + 1, 1);
    end
    subplot(rows, columns, k);
    bar(0:numel(counts) - 1, counts, 0.8, 'facecolor', colors(1, :));
    hold on;
    plot([-0.5, numel(counts) - 0.5], mean(counts) * [1 1], 'k--');
    hold off;
    xlim([-0.7, numel(counts) - 0.3]);
    title(sprintf('%s  (variation %.3f)', tags{k}, std(counts, 1) / mean(counts)), 'interpreter', 'none');
    xlabel('class');
    ylabel('samples');
end
print('-dpng', '-r150', fullfile(output, 'ablation_counts_m.png'));
