#!/usr/bin/env bash
# Everything that needs a GPU, unattended: what works, the gpu tests, parity, and the bars G1 to G5.
#
#   benchmarks/gpu.sh OUT                                all of it, in less than 25 minutes
#   UNETFAST_BENCH_PARTS=works benchmarks/gpu.sh OUT     or one of the groups works, train and load, each in less than eight:
#                                                        OUT takes a group at a time, so give each its own
#
# works: what of DALI runs, tests, parity, decoders. train: G1, G4, G5. load: G2, G3. See docs/benchmarks.md.
# A part that fails, hangs or crashes is reported, and the next one runs. OUT holds the results so far at any time.
set -uo pipefail

if [ $# -ne 1 ]; then
    echo "usage: benchmarks/gpu.sh OUT" >&2
    exit 2
fi
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
DEVICE=${UNETFAST_BENCH_DEVICE:-cuda}      # cuda | cpu
SCALE=${UNETFAST_BENCH_SCALE:-full}        # full | small
PARTS=${UNETFAST_BENCH_PARTS:-all}         # or names of parts and groups, separated by commas
case ",$PARTS," in *,all,*) DEADLINE=1400 ;; *) DEADLINE=465 ;; esac
DEADLINE=${UNETFAST_BENCH_SECONDS:-$DEADLINE}  # no part begins or goes on behind it
BREAK=${UNETFAST_BENCH_BREAK:-}            # a part that is made to fail, to see that the others go on
WORK=$(mktemp -d)
trap 'jobs -p | xargs -r kill 2>/dev/null; rm -rf "$WORK"' EXIT
trap 'exit 143' TERM INT
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TORCHINDUCTOR_CACHE_DIR="$WORK/inductor"
cd "$ROOT" || exit 2
if ! "$PYTHON" -c ''; then
    echo "PYTHON=$PYTHON does not run (from $ROOT)" >&2
    exit 2
fi
rm -f "$OUT"/{summary.json,records.json,environment.txt,pytest.xml}
: >"$OUT/log.txt"
: >"$WORK/parts.tsv"
SECONDS=0
declare -A PIDS=()
GROUP=

# begin NAME LIMIT_S COMMAND...: start a part in the background, unless neither it nor a group of GROUP was asked for, or there
# is no time
begin() {
    local name=$1 limit=$2 left=$((DEADLINE - SECONDS)) asked=
    shift 2
    for asked in all "$name" $GROUP none; do
        case ",$PARTS," in *",$asked,"*) break ;; esac
    done
    [ "$asked" != none ] || return 0
    if [ "$left" -lt 10 ]; then
        printf '%s\tno time\t0\t%s\n' "$name" "$limit" >>"$WORK/parts.tsv"
        return 0
    fi
    [ "$SCALE" != small ] || limit=$((5 * limit))  # a trial may share its cores
    [ "$limit" -le "$left" ] || limit=$left
    [ "$name" != "$BREAK" ] || set -- sh -c 'echo "broken on purpose" >&2; exit 3'
    (
        began=$SECONDS
        trap 'kill "$running"' TERM
        timeout -k 5 "$limit" "$@" >"$WORK/$name.log" 2>&1 &
        running=$!
        wait "$running"
        printf '%s\t%s\t%s\t%s\n' "$name" "$?" "$((SECONDS - began))" "$limit" >>"$WORK/parts.tsv"
    ) &
    PIDS[$name]=$!
}

# finish NAME...: wait for parts, and take what they left into OUT
finish() {
    local name
    for name in "$@"; do
        [ -n "${PIDS[$name]:-}" ] || continue
        wait "${PIDS[$name]}"
        { echo "===== $name"; tail -c 200000 "$WORK/$name.log"; echo; } >>"$OUT/log.txt"
        echo "$SECONDS s: $("$PYTHON" benchmarks/gpu_summary.py "$WORK" "$OUT" --tell "$name")"
    done
}

part() {
    begin "$@"
    finish "$1"
}

# what differs between a real run and a trial of this script
TOY=(--data "$WORK/data" --device "$DEVICE")
if [ "$SCALE" = small ]; then
    TOY+=(--small) SMALL=(--small)
    ROUNDS=(--rounds 2 --seconds 0.2) TAX_ROUNDS=(--rounds 2 --seconds 0.2) STEP_ROUNDS=(--rounds 2 --seconds 0.1)
    export OMP_NUM_THREADS=1
    TAX=(--set model.base_channels=4 --set model.depth=2 --set "loader.size_hw=[32, 48]" --set loader.batch_size=4)
    NET=(--set model.base_channels=4 --set model.depth=2 --set train.compile=off) WARM=1
    SIZE=64x96 LARGE=128x192 ADE=64x64 BATCHES=2 THREADS=1 CORES=1 STEP_SIZES=(64x96) STEP_BATCH=2
    STEP_SIDES=ours,eager,milesial LATENCY_SIDES=eager,folded DECODE_SIDES=dali,cpu,workers-1
else
    SMALL=()
    ROUNDS=(--rounds 5 --seconds 0.8) TAX_ROUNDS=(--rounds 5 --seconds 1.0) STEP_ROUNDS=(--rounds 5 --seconds 0.5)
    TAX=() NET=() WARM=3
    SIZE=160x240 LARGE=640x960 ADE=256x256 BATCHES=6 THREADS=0 CORES=4 STEP_SIZES=(160x240 256x256 512x512 640x960) STEP_BATCH=0
    STEP_SIDES=ours,graphs,eager,float32-nchw,milesial,milesial-amp,smp LATENCY_SIDES=ours,eager,folded,compiled,graphs,frozen
    DECODE_SIDES=dali,cpu,torchvision-cuda,workers-8,workers-16
fi
if [ "$DEVICE" = cuda ]; then
    PARITY=default,hw_decoder_load=0,hw_decoder_load=1,inflate=gpu,region_decode=always
    INFLATE=,dali:inflate=gpu BACKENDS=dali,cache-gpu,cpu
else
    PARITY=default INFLATE= BACKENDS=dali,cpu
fi
LOADER=("$PYTHON" benchmarks/loader.py "${TOY[@]}" --threads "$THREADS" "${ROUNDS[@]}")

environment() {
    "$PYTHON" -c 'import json; from unetfast.bench import harness; print(json.dumps(harness.describe_environment()))' >"$WORK/environment.json"
    {
        uname -a; date -u; nproc; free -m; lscpu; df -h "$WORK"
        nvidia-smi; nvidia-smi -q -d MEMORY,UTILIZATION,CLOCK,ENCODER_STATS
        "$PYTHON" -c 'from importlib.metadata import distributions
print("\n".join(sorted({f"{one.name} {one.version}" for one in distributions()}, key=str.lower)))'
        env | grep -E '^(PYTHONPATH|LD_LIBRARY_PATH|CUDA|NVIDIA|UNETFAST)'
    } >"$OUT/environment.txt" 2>&1
    test -s "$WORK/environment.json"
}
export -f environment
export PYTHON WORK OUT

# tests with the mark gpu, and no others: a package that other tests want may be missing here
TESTS=(-m gpu -v -ra -p no:cacheprovider -o addopts= -W default --continue-on-collection-errors --junitxml "$OUT/pytest.xml")
"$PYTHON" -c 'import xdist' 2>/dev/null && TESTS+=(-n "$([ "$SCALE" = small ] && echo 1 || echo 10)")
"$PYTHON" -c 'import pytest_timeout' 2>/dev/null && TESTS+=(--timeout 60)
mapfile -t FILES < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | grep -v '^tests/loader/')

# nothing here is timed, so it runs side by side
GROUP="works train load"
part environment 30 env PYTHONPATH="$ROOT/benchmarks:$PYTHONPATH" bash -c environment
GROUP="works load"
begin data 150 nice -n 10 "$PYTHON" -m unetfast.bench.toyshards carvana clevr ade20k "${SMALL[@]}" --data "$WORK/data"
GROUP=works
begin tests 130 "$PYTHON" -m pytest "${TESTS[@]}" tests/loader "${FILES[@]}"
part probe 120 "$PYTHON" benchmarks/gpu_probe.py --device "$DEVICE" --steps works --json "$WORK/probe.json"
finish data
for set in carvana clevr ade20k; do
    begin "parity-$set" 90 "$PYTHON" benchmarks/parity.py "${TOY[@]}" --toy $set --variants "$PARITY" --batches "$BATCHES" \
        --timeout 75 --json "$WORK/parity-$set.json"
done
finish parity-carvana parity-clevr parity-ade20k tests

# from here on one part at a time
GROUP=works
part rates 60 "$PYTHON" benchmarks/gpu_probe.py --device "$DEVICE" --steps rates --json "$WORK/rates.json"
LOADS=$(printf ',dali:hw_decoder_load=%s' 0 0.25 0.5 0.65 0.8 1)
[ "$SCALE" != small ] || LOADS=,dali:hw_decoder_load=0
for cell in "carvana $SIZE" "ade20k $ADE"; do
    read -r set size <<<"$cell"
    part "unit-$set" 75 "${LOADER[@]}" --toy "$set" --size "$size" --sides "${LOADS#,}" --json "$WORK/unit-$set.json"
done
for cell in "clevr $SIZE" "ade20k $ADE" "carvana $SIZE"; do
    read -r set size <<<"$cell"
    part "ways-$set" 60 "${LOADER[@]}" --toy "$set" --size "$size" \
        --sides "dali:region_decode=never,dali:region_decode=always$INFLATE" --json "$WORK/ways-$set.json"
done

GROUP=train
for size in "${STEP_SIZES[@]}"; do  # G1
    part "training-$size" 110 "$PYTHON" benchmarks/gpu_training.py --device "$DEVICE" --data "$WORK/data" --size "$size" \
        --batch-size "$STEP_BATCH" --sides "$STEP_SIDES" "${NET[@]}" "${STEP_ROUNDS[@]}" --json "$WORK/training-$size.json"
done
part compile 150 "$PYTHON" benchmarks/gpu_compile.py "${TOY[@]}" --small --toy carvana --rounds "$WARM" "${TAX[@]}" "${NET[@]}" \
    --json "$WORK/compile.json"  # G4
part latency 90 "$PYTHON" benchmarks/gpu_latency.py --device "$DEVICE" --size "$ADE" --sides "$LATENCY_SIDES" "${NET[@]}" \
    "${STEP_ROUNDS[@]}" --json "$WORK/latency.json"  # G5

GROUP=load
for set in carvana clevr ade20k; do  # G2
    part "tax-$set" 120 "$PYTHON" benchmarks/loader_tax.py "${TOY[@]}" --toy $set --backends "$BACKENDS" --threads 4 \
        --cores "$CORES" "${TAX[@]}" "${TAX_ROUNDS[@]}" --json "$WORK/tax-$set.json"
done
for cell in "ade20k $ADE" "carvana $SIZE"; do  # G3
    read -r set size <<<"$cell"
    part "decode-$set" 90 "$PYTHON" benchmarks/gpu_decode.py "${TOY[@]}" --toy "$set" --size "$size" --sides "$DECODE_SIDES" \
        --set "loader.threads=$THREADS" "${ROUNDS[@]}" --json "$WORK/decode-$set.json"
done
for cell in "clevr $SIZE" "carvana $LARGE"; do
    read -r set size <<<"$cell"
    part "loader-$set-$size" 75 "${LOADER[@]}" --toy "$set" --size "$size" --sides cpu,cpu-fast,dali,yardstick \
        --json "$WORK/loader-$set-$size.json"
done
for name in ${PARTS//,/ }; do
    case "$name" in all | works | train | load) ;; *) grep -q "^$name	" "$WORK/parts.tsv" || printf '%s\tunknown part\t0\t0\n' "$name" >>"$WORK/parts.tsv" ;; esac
done
"$PYTHON" benchmarks/gpu_summary.py "$WORK" "$OUT" --seconds "$SECONDS"  # the last line, and the exit code
