#!/usr/bin/env bash
# Everything worth measuring on a CUDA GPU in one go of at most ten minutes; needs no data.
#   OUT=folder benchmarks/cuda.sh     figures and logs to $OUT (run/cuda by default)
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
"$python" - "$out" <<'PY'
import json, sys
rows = [[json.loads(line) for line in open(f"{sys.argv[1]}/{run}/metrics.jsonl")] for run in ("one", "two")]
same = all({**a, "seconds": 0} == {**b, "seconds": 0} for a, b in zip(*rows, strict=True))
print("two --deterministic runs:", "identical" if same else "DIFFERENT")
PY
timeout 420 "$python" benchmarks/cuda.py --output "$out/cuda.json" "$@" 2>&1 | tee "$out/cuda.log"
