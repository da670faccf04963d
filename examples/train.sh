# Sourced by the recipes: sets up, reads SIZE and says how to train.
#   . "$(dirname "$0")/train.sh"; train FLAGS of Megatron-LM
# SIZE=small (the default) trains for minutes on a CPU, on data made here, in NPROC processes (default 1), each on a
# card or with its share of the cores. The other sizes are for CARDS cards, which the recipe names: run it on each
# node with NNODES, NODE_RANK, MASTER_ADDR, DATA_PATH (Megatron's indexed dataset, without .bin) and
# TOKENIZER_MODEL (a Hugging Face name or folder), and add --save DIR --load DIR. PRINT=1 prints the command and
# starts nothing. Paths are from where you are.

ROOT="$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
NEEDS_TRAINER=1
[ -n "${PRINT:-}" ] || . "$ROOT/examples/setup.sh"
export SIZE="${SIZE:-small}"
# Waiting threads of torch's and of MindSpore's pool must not spin on cores that the other pool needs.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# Megatron asks for it with tensor parallelism; on devices without CUDA's queues it says nothing.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"

# What the small sizes share: four layers, 200 iterations.
SMALL=(
    --num-layers 4 --hidden-size 256 --num-attention-heads 8 --seq-length 256 --max-position-embeddings 256
    --micro-batch-size 4 --global-batch-size 8 --train-iters 200
    --lr 2e-3 --min-lr 2e-4 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.02
    --log-interval 10 --eval-interval 100 --eval-iters 4 --save-interval 100
)
# What the full sizes share: bfloat16, sharded optimizer, everything that overlaps; 1 % of the iterations warm up.
FULL=(
    --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --sequence-parallel
    --train-iters 100000 --lr-decay-style cosine --lr-warmup-fraction 0.01
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
    --log-interval 10 --eval-interval 1000 --eval-iters 10 --save-interval 1000
    --distributed-timeout-minutes 30
)
# What every decoder since Llama shares.
LLAMA=(
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear
    --attention-dropout 0 --hidden-dropout 0
)
UNTIED=--untie-embeddings-and-output-weights

unknown_size() { # SIZES...
    stop "there is no size '$SIZE': set SIZE to one of small $*"
}

stop() { # SENTENCE
    echo "$0: $*" >&2
    exit 1
}

train() {
    local command=(mindspeed-ms run) cards="${NPROC:-8}" workers=2
    if [ "$SIZE" = small ]; then
        [ "${NPROC:-1}" -eq 1 ] || command=(torchrun --standalone --nproc-per-node "$NPROC")
        if [ -z "${DATA_PATH:-}" ]; then
            DATA_PATH=runs/data/stdlib TOKENIZER_MODEL=runs/data/tokenizer
            [ -n "${PRINT:-}" ] || python "$ROOT/examples/prepare_data.py" --output-dir runs/data --vocab-size 4096
        fi
        workers=0
    else
        [ "$cards" -gt 0 ] && [ $((CARDS % cards)) -eq 0 ] || stop "$CARDS cards are not nodes of NPROC=$cards"
        command=(
            torchrun --nproc-per-node "$cards" --nnodes "${NNODES:-$((CARDS / cards))}" --node-rank "${NODE_RANK:-0}"
            --master-addr "${MASTER_ADDR:-localhost}" --master-port "${MASTER_PORT:-29500}"
        )
    fi
    command+=("$ROOT/examples/pretrain_gpt.py")
    case " $* " in
        *" --data-path "* | *" --mock-data "*) ;;
        *)
            [ -n "${DATA_PATH:-}" ] || stop "DATA_PATH is to name an indexed dataset of Megatron, without .bin"
            [ -n "${TOKENIZER_MODEL:-}" ] || stop "TOKENIZER_MODEL is to name a Hugging Face tokenizer"
            command+=(
                --data-path "$DATA_PATH" --split 95,5,0
                --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$TOKENIZER_MODEL"
            )
            ;;
    esac
    command+=(--no-create-attention-mask-in-dataloader --num-workers "$workers" "$@")
    if [ -n "${PRINT:-}" ]; then
        printf '%q ' "${command[@]}"
        echo
    else
        "${command[@]}"
    fi
}
