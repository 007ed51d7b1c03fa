#!/usr/bin/env bash
# Everything worth measuring on a CUDA GPU in one go of at most ten minutes; needs no data.
#   OUT=folder benchmarks/cuda.sh     figures and logs to $OUT (run/cuda by default)
# With TEACHER=checkpoint a published run comes last, a slice of it each time.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-run/cuda}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$out"

# The whole method on the GPU: a run on digits, and the same again, which must agree bit by bit.
flags="--dataset digits --teacher wrn16_1 --student wrn16_1 --batch_size 64 --epochs 12 --warmup 2 --kd_steps 20
    --ep_steps 20 --g_steps 5 --teacher_ckpt $out/teacher.pth --overwrite"
timeout 60 "$python" train_scratch.py --dataset digits --model wrn16_1 --epochs 12 --batch-size 64 --lr 0.1 \
    --output "$out/teacher.pth" --overwrite > "$out/teacher.log" 2>&1
for run in one two; do
    # shellcheck disable=SC2086
    timeout 60 "$python" bsr_main.py $flags --deterministic --save_dir "$out/$run" > "$out/$run.log" 2>&1
    [ "${PIPESTATUS[0]}" = 0 ] || echo "the run on digits failed:"
    tail -n 4 "$out/$run.log"
done
# Stopped after four epochs and continued, which must agree too.
# shellcheck disable=SC2086
{
    "$python" bsr_main.py $flags --deterministic --save_dir "$out/continued" & run=$!
    for _ in $(seq 300); do
        [ "$(cat "$out/continued/metrics.jsonl" 2> /dev/null | wc -l)" -lt 4 ] || break
        sleep 0.2
    done
    kill "$run"
    wait "$run"
    timeout 60 "$python" bsr_main.py ${flags/--overwrite/} --deterministic --save_dir "$out/continued" --resume
} > "$out/continued.log" 2>&1 || echo "the run that was stopped failed: see $out/continued.log"
# The same with the teacher asked once for each view, and with all that is made to be fast.
# shellcheck disable=SC2086
{
    timeout 60 "$python" bsr_main.py $flags --deterministic --reuse_teacher 50MB --save_dir "$out/reuse"
    timeout 60 "$python" bsr_main.py $flags --reuse_teacher 50MB --eval_every 4 --amp auto --save_dir "$out/fast"
} > "$out/reuse.log" 2>&1 || echo "a run on digits failed: see $out/reuse.log"
"$python" - "$out" <<'PY'
import json, sys
rows = {}
for run in ("one", "two", "continued", "reuse", "fast"):
    rows[run] = [json.loads(line) for line in open(f"{sys.argv[1]}/{run}/metrics.jsonl")]
for run, what in (
    ("two", "two --deterministic runs"), ("continued", "stopped and continued"), ("reuse", "with and without --reuse_teacher")
):
    same = all({**a, "seconds": 0} == {**b, "seconds": 0} for a, b in zip(rows["one"], rows[run], strict=True))
    print(f"{what}:", "identical" if same else "DIFFERENT")
print("last accuracy:", {run: of_run[-1]["test_top1"] for run, of_run in rows.items()})
PY
timeout 420 "$python" benchmarks/cuda.py --output "$out/cuda.json" "$@" 2>&1 | tee "$out/cuda.log"

# resnet34, which TEACHER is of, to resnet18 on CIFAR-10, which lies below DATA.
if [ -n "${TEACHER:-}" ]; then
    more=$([ -e "$out/published/checkpoint.pth" ] && echo --resume)
    # shellcheck disable=SC2086
    timeout --signal INT "${SLICE:-540}" "$python" bsr_main.py --dataset cifar10 --data_root "${DATA:-data}" --teacher resnet34 \
        --student resnet18 --teacher_ckpt "$TEACHER" --amp auto --reuse_teacher 4GB --eval_every 20 \
        --save_dir "$out/published" $more 2>&1 | tee -a "$out/published.log"
fi
