#!/bin/sh
# Tests and benchmarks of srigl on the GPU of this machine.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit

usage() {
    cat <<END
Tests and benchmarks of srigl on the GPU of this machine, which needs a driver, NVRTC (libnvrtc) and CUDA's headers
(in /usr/local/cuda, or where CUDA_PATH says).

  run.sh tests                    the GPU tests, then a short training run
  run.sh bench [PYTHON]           layers, networks and training steps; beside PyTorch if PYTHON has it
  run.sh fashion-mnist DATA       accuracies of all methods, five seeds; DATA has the four files
  run.sh all [PYTHON [DATA]]      all of it

On its first step a program compiles and tries Burn's kernels for each product, which takes a while: some 20 s for each
on an H100. What is printed lands in ./results too, or in the folder that RESULTS names. DEVICE=cuda:1 takes another GPU for
benchmarks and training. A failure does not stop the rest; the exit code tells.
END
}

results=${RESULTS:-results}
device=${DEVICE:-cuda}
failed=

# Runs a command, its name first; output goes to the screen and to NAME.txt among the results.
run() {
    name=$1
    shift
    echo "== $*"
    { "$@" 2>&1; echo "exit code $?"; } | tee "$results/$name.txt"
    tail -n 1 "$results/$name.txt" | grep -qx "exit code 0" || failed="$failed $name"
}

tests() {
    # Which of Burn's kernels is the fastest does not matter here, and finding out takes most of the time.
    export CUBECL_AUTOTUNE_LEVEL="${CUBECL_AUTOTUNE_LEVEL:-minimal}"
    for test in "$here"/tests/*; do
        run "test-$(basename "$test")" "$test" --test-threads 1
    done
    rm -rf "$results/run"
    run train "$here/srigl" train --dataset glyphs --model mnist-cnn --method srigl --sparsity 0.9 --epochs 2 \
        --optimizer adamw --lr 0.001 --device "$device" --out "$results/run"
    run eval "$here/srigl" eval "$results/run" --device "$device"
    run update "$here/srigl" bench train vit-b-16 --sparsity 0.9 --batch 64 --device "$device" --steps 20
}

# Arguments: an interpreter with PyTorch, or nothing.
bench() {
    if [ -n "$1" ]; then
        set -- --device "$device" --torch "$1"
    else
        set -- --device "$device"
    fi
    for batch in 1 256; do
        for sparsity in 0.8 0.9 0.95 0.99; do
            run "linear-$sparsity-$batch" \
                "$here/srigl" bench layer --in 3072 --out 768 --sparsity $sparsity --batch $batch "$@"
        done
    done
    for kernel in 1 3; do
        run "conv-$kernel-14" \
            "$here/srigl" bench layer --conv 256 256 $kernel --size 14 --sparsity 0.9 --batch 64 "$@"
        run "conv-$kernel-56" \
            "$here/srigl" bench layer --conv 64 64 $kernel --size 56 --sparsity 0.9 --batch 64 "$@"
    done
    for model in resnet50 vit-b-16; do
        for batch in 1 64; do
            run "model-$model-$batch" "$here/srigl" bench model $model --sparsity 0.9 --batch $batch "$@"
        done
        for float in f32 bf16; do
            run "train-$model-$float" \
                "$here/srigl" bench train $model --sparsity 0.9 --batch 64 --float $float "$@"
        done
    done
}

fashion_mnist() {
    run fashion-mnist env SRIGL_BIN="$here/srigl" "$here/xtask" reproduce fashion-mnist-gpu --device "$device" \
        --jobs 1 --data "$1" --out "$results/fashion-mnist-gpu"
}

case ${1:-} in
    tests | bench | fashion-mnist | all) mkdir -p "$results" || exit ;;
    *)
        usage
        exit 2
        ;;
esac
case $1 in
    tests) tests ;;
    bench) bench "${2:-}" ;;
    fashion-mnist) fashion_mnist "${2:?the folder of the data set is missing}" ;;
    all)
        tests
        bench "${2:-}"
        if [ -n "${3:-}" ]; then fashion_mnist "$3"; fi
        ;;
esac
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
