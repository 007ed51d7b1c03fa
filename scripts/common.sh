# Sourced by the table scripts, which name their rows with `row` and end with `finish`.
#
# Environment: DATA_ROOT (default data), SEEDS (default "0"), ONLY="bsr fast" (these rows alone), EXTRA (more flags for
# every row; give other flags another RUNS), RUNS (where run folders go, default run), DRY_RUN=1 (print the commands
# only), SMOKE=1 (the same rows without data, with tiny budgets and untrained teachers, to see that each of them runs),
# PYTHON.
# Finished runs are skipped, unfinished ones continued; a failed one is listed at the end and stops no other.
# Ctrl-C stops all.
set -uo pipefail
CALLED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

absolute() { # path, as the caller means it
    if [ "$CALLED_FROM" = "$PWD" ] || [[ $1 == /* ]]; then echo "$1"; else echo "$CALLED_FROM/$1"; fi
}
off() { [ "${1:-0}" = 0 ]; }

TABLE=$(basename "$0" .sh)
RUNS=${RUNS:+$(absolute "$RUNS")}
RUNS=${RUNS:-run}
DATA_ROOT=${DATA_ROOT:+$(absolute "$DATA_ROOT")}
DATA_ROOT=${DATA_ROOT:-data}
off "${SMOKE:-}" || TABLE=smoke-$TABLE
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
FAILED=()
ROWS=

# For the tables on CIFAR-10: sets `pair`, from the public resnet20 of akamaster (91.73 %; TEACHER is its file) to wrn16_1,
# and `budget`, for methods that store samples: 128 an epoch, from ten epochs before the student starts on, 10,240 in all;
# `asking` is the same where the teacher's answers cannot be used again.
public_resnet20() {
    local address=https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet20-12fca82f.th
    local teacher
    teacher=$(absolute "${TEACHER:-checkpoints/pretrained/resnet20-12fca82f.th}")
    if off "${DRY_RUN:-}" && off "${SMOKE:-}" && [ ! -e "$teacher" ]; then
        echo "$TABLE.sh: no teacher at $teacher: put $address there, or name its file in TEACHER" >&2
        exit 2
    fi
    pair=(cifar10 resnet20 wrn16_1 --teacher_ckpt "$teacher" --mean imagenet --batch_size 128 --amp bf16 --device cpu)
    asking=(--epochs 80 --warmup 10 --kd_steps 60 --ep_steps 60 --eval_every 10)
    budget=("${asking[@]}" --reuse_teacher 400MB)
}

smoke_teacher() { # teacher file
    if off "${DRY_RUN:-}" && [ ! -e "$2" ]; then
        "$PYTHON" train_scratch.py --dataset digits --model "$1" --epochs 0 --output "$2"
    fi
}

row() { # name dataset teacher student [flags]
    rows_of bsr_main.py "$@"
}
kd_row() { # name dataset teacher student [flags]
    rows_of vanilla_kd.py "$@"
}
rows_of() { # script name dataset teacher student [flags]
    local script=$1 name=$2 dataset=$3 teacher=$4 student=$5 seed
    shift 5
    ROWS+=" $name "
    [[ -z "${ONLY:-}" || " $ONLY " == *" $name "* ]] || return 0
    local stem=${teacher##*/} # of path/file.py:Net, file-Net
    stem=${stem/.py:/-}
    for seed in ${SEEDS:-0}; do
        local folder=$RUNS/$TABLE/$dataset-$stem-$student-$name-seed$seed
        local command=("$PYTHON" -u "$script" --dataset "$dataset" --teacher "$teacher" --student "$student" "$@"
            --data_root "$DATA_ROOT" --seed "$seed" --save_dir "$folder")
        if off "${SMOKE:-}"; then
            [ "$script" = vanilla_kd.py ] || command+=(--test_teacher)
        else
            local file=$RUNS/smoke-teachers/$teacher.pth
            smoke_teacher "$teacher" "$file"
            command+=(--teacher_ckpt "$file")
            if [ "$script" = vanilla_kd.py ]; then
                command+=(--dataset digits --epochs 1 --batch_size 10000)
            else
                command+=(--dataset none --img_size 32 --epochs 2 --warmup 1 --kd_steps 1 --ep_steps 1 --batch_size 8
                    --g_steps 1)
            fi
            [[ " $* " != *" --method nayer "* ]] || command+=(--synthesis_batch_size 8 --g_loops 1 --gwp_loops 1)
        fi
        # shellcheck disable=SC2206
        command+=(${EXTRA:-})
        if ! off "${DRY_RUN:-}"; then
            printf '%q ' "${command[@]}"
            echo
            continue
        fi
        if [ -e "$folder/summary.json" ]; then
            echo "finished: $folder"
            continue
        fi
        if [ -e "$folder/checkpoint.pth" ] || [ -e "$folder/checkpoint.previous.pth" ]; then
            command+=(--resume)
        elif [ -e "$folder/config.json" ]; then # stopped before an epoch was done
            command+=(--overwrite)
        fi
        echo "${command[*]}"
        local status=0
        "${command[@]}" || status=$?
        if [ $status = 130 ] || [ $status = 143 ]; then # stopped by the user
            exit $status
        elif [ $status != 0 ]; then
            FAILED+=("$folder")
        fi
    done
}

finish() {
    local name
    for name in ${ONLY:-}; do
        if [[ "$ROWS" != *" $name "* ]]; then
            echo "$TABLE.sh: no row $name in ONLY; there are: $(xargs -n 1 <<<"$ROWS" | sort -u | xargs)" >&2
            exit 2
        fi
    done
    if [ ${#FAILED[@]} -gt 0 ]; then
        printf 'failed: %s\n' "${FAILED[@]}" >&2
        exit 1
    fi
}

# The five pairs of the tables, each with the weight of the adversarial loss published for it.
PAIRS=("resnet34 resnet18 1.33" "vgg11 resnet18 1.0" "wrn40_2 wrn16_1 1.1" "wrn40_2 wrn40_1 1.1"
    "wrn40_2 wrn16_2 1.1")
