#!/bin/sh
# Tests and benchmarks of srigl on the GPU of this machine, which needs a driver and NVRTC (libnvrtc) besides.
#
#   ./run.sh tests                    the GPU tests, then a short training run
#   ./run.sh bench [PYTHON]           layers, networks and training steps; beside PyTorch if PYTHON has it
#   ./run.sh fashion-mnist DATA       accuracies of all methods, five seeds; DATA has the four files
#   ./run.sh all [PYTHON [DATA]]      all of it
#
# What is printed lands in results/ too, or in the folder that RESULTS names. DEVICE=cuda:1 takes another GPU
# for benchmarks and training. A failure does not stop the rest; the exit code tells.
set -u
cd "$(dirname "$0")" || exit
results=${RESULTS:-results}
device=${DEVICE:-cuda}
failed=
mkdir -p "$results" || exit

# Runs a command, its name first; output goes to the screen and to results/NAME.txt.
run() {
    name=$1
    shift
    echo "== $*"
    { "$@" 2>&1; echo "exit code $?"; } | tee "$results/$name.txt"
    tail -n 1 "$results/$name.txt" | grep -qx "exit code 0" || failed="$failed $name"
}

tests() {
    for test in tests/*; do
        run "test-$(basename "$test")" "$test" --test-threads 1
    done
    rm -rf "$results/run"
    run train ./srigl train --dataset glyphs --model mnist-cnn --method srigl --sparsity 0.9 --epochs 2 \
        --optimizer adamw --lr 0.001 --device "$device" --out "$results/run"
    run eval ./srigl eval "$results/run" --device "$device"
    run update ./srigl bench train vit-b-16 --sparsity 0.9 --batch 64 --device "$device" --steps 20
}

bench() {
    torch=${1:+--torch $1}
    # $torch is two words or none.
    # shellcheck disable=SC2086
    for batch in 1 256; do
        for sparsity in 0.8 0.9 0.95 0.99; do
            run "linear-$sparsity-$batch" ./srigl bench layer --in 3072 --out 768 --sparsity $sparsity \
                --batch $batch --device "$device" $torch
        done
    done
    for kernel in 1 3; do
        run "conv-$kernel" ./srigl bench layer --conv 256 256 $kernel --size 14 --sparsity 0.9 --batch 64 \
            --device "$device" $torch
    done
    for model in resnet50 vit-b-16; do
        for batch in 1 64; do
            run "model-$model-$batch" ./srigl bench model $model --sparsity 0.9 --batch $batch \
                --device "$device" $torch
        done
        for float in f32 bf16; do
            run "train-$model-$float" ./srigl bench train $model --sparsity 0.9 --batch 64 --float $float \
                --device "$device" $torch
        done
    done
}

fashion_mnist() {
    run fashion-mnist env SRIGL_BIN=./srigl ./xtask reproduce fashion-mnist-gpu --device "$device" --data "$1" \
        --out "$results/fashion-mnist-gpu"
}

case ${1:-} in
    tests) tests ;;
    bench) bench "${2:-}" ;;
    fashion-mnist) fashion_mnist "${2:?the folder of the data set is missing}" ;;
    all)
        tests
        bench "${2:-}"
        if [ -n "${3:-}" ]; then fashion_mnist "$3"; fi
        ;;
    *)
        sed -n 's/^# \{0,1\}//p' "$0" | head -n 9
        exit 2
        ;;
esac
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
