# Sourced by the recipes: sets up, prepares data, and says how to train.
#   . "$(dirname "$0")/train.sh"; train FLAGS of Megatron-LM
# NPROC processes are started (default 1), each on a card or, on the CPU, with its share of the cores.

NEEDS_TRAINER=1
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
# Waiting threads of torch's and of MindSpore's pool must not spin on cores that the other pool needs.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# Megatron asks for it with tensor parallelism; on devices without CUDA's queues it says nothing.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"

DATA=(
    --data-path runs/data/stdlib --split 95,5,0
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model runs/data/tokenizer
    --no-create-attention-mask-in-dataloader --num-workers 0
)

train() {
    local start=(mindspeed-ms run)
    [ "${NPROC:-1}" -eq 1 ] || start=(torchrun --standalone --nproc-per-node "$NPROC")
    python examples/prepare_data.py --output-dir runs/data --vocab-size 4096
    "${start[@]}" examples/pretrain_gpt.py "${DATA[@]}" "$@"
}
