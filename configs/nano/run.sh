#!/usr/bin/env bash
# From nothing to a trained nano: artwork, captions, start, every stage, one checkpoint folder.
#   configs/nano/run.sh [work folder]
# BUDGET is "full" (hours on two cores) or "toy" (a few minutes, to see that everything works). ASSETS names a folder of
# assets that exists already. A run that was stopped goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."
WORK=${1:-runs/nano}
BUDGET=${BUDGET:-full}
ASSETS=${ASSETS:-data/nano}
ARIMAGE=${ARIMAGE:-arimage}
mkdir -p "$WORK"

[ -e "$ASSETS/sprites.zip" ] || $ARIMAGE data sprites -o "$ASSETS" --downloads "$WORK/artwork"
if [ ! -e "$WORK/start/model_index.json" ]; then
  if [ "$BUDGET" = toy ]; then
    $ARIMAGE data captions "$ASSETS" -n 300 -o "$WORK/captions.txt"
  else
    $ARIMAGE data captions configs/nano/autoregressive-256.yaml -n 4000 -o "$WORK/captions.txt"
  fi
  $ARIMAGE init configs/nano/model.yaml --corpus "$WORK/captions.txt" --dtype float32 -o "$WORK/start"
fi

# stage, the stage that it starts from, and its settings on the toy budget
train() {
  local stage=$1 from=$2; shift 2
  local settings=()
  [ "$BUDGET" = toy ] && settings=("$@" precision=\"no\" warmup=1 evaluation_batches=1 samples.steps=2 scenes.groups=[] scenes.fonts=null scenes.minimum_rating=1)
  case $stage in tokenizer-512 | tokenizer-letters) settings+=("tokenizer.classes=$WORK/tokenizer/classes.safetensors") ;; esac
  [ -e "$WORK/$stage/checkpoint/model_index.json" ] && return
  $ARIMAGE train "configs/nano/$stage.yaml" start="$WORK/$from" output="$WORK/$stage" assets="$ASSETS" \
    ${settings[@]+"${settings[@]}"} ${prepared[@]+"${prepared[@]}"}
}

# the same from samples that the frozen networks have encoded once; on the toy budget from fresh ones
train_prepared() {
  local stage=$1 from=$2 samples=$3 cache=$WORK/$4 prepared=(); shift 4
  if [ "$BUDGET" != toy ]; then
    [ -e "$WORK/$stage/checkpoint/model_index.json" ] ||
      $ARIMAGE prepare "configs/nano/$stage.yaml" start="$WORK/$from" assets="$ASSETS" -n "$samples" -o "$cache"
    prepared=("data=[{cache: $cache}]")
  fi
  train "$stage" "$from" "$@"
}

train autoencoder start steps=4 batch_size=4 autoencoder.crop=64 autoencoder.statistics_samples=8
train autoencoder-whole autoencoder/checkpoint steps=1 batch_size=2 autoencoder.statistics_samples=8
train tokenizer start steps=3 batch_size=4 tokenizer.class_samples=60
train tokenizer-512 tokenizer/checkpoint steps=1 batch_size=2
train tokenizer-letters tokenizer-512/checkpoint steps=1 batch_size=2
[ -e "$WORK/pixels/model_index.json" ] || $ARIMAGE assemble "$WORK/tokenizer-letters/checkpoint" \
  autoencoder="$WORK/autoencoder-whole/checkpoint" --dtype float32 -o "$WORK/pixels"
train_prepared autoregressive-256 pixels 32000 codes-256 steps=3 batch_size=2
train_prepared autoregressive-named autoregressive-256/checkpoint 24000 codes-named steps=2 batch_size=2 autoregressive.naming_head=null
train autoregressive-quality autoregressive-named/checkpoint steps=1 batch_size=1
train_prepared decoder-256 pixels 8000 latents-256 steps=3 batch_size=2
train_prepared decoder-512 decoder-256/checkpoint 8000 latents-512 steps=1 batch_size=1 decoder.noise_levels_per_image=1
rendered=decoder-512
if [ "$BUDGET" = toy ] || command -v nvidia-smi > /dev/null; then  # minutes of a GPU show it more than days of cores do
  train decoder-gpu decoder-512/checkpoint steps=2 batch_size=1 workers=0 replays=1 decoder.noise_levels_per_image=1
  rendered=decoder-gpu
fi
train decoder-quality "$rendered/checkpoint" steps=1 batch_size=1 decoder.noise_levels_per_image=1

rm -rf "$WORK/nano"
$ARIMAGE assemble "$WORK/decoder-quality/checkpoint" autoregressive="$WORK/autoregressive-quality/checkpoint" \
  --name arimage-nano --sampling temperature=0.7 --sampling top_p=0.9 --sampling preview_grid=false \
  --sampling draft_side=256 --sampling draft_strength=0.1 --sampling sigma_min=0.25 \
  --sampling with_references.draft_strength=0.2 --sampling with_references.align_references=true -o "$WORK/nano"
steps=()
[ "$BUDGET" = toy ] && steps=(--steps 4)
$ARIMAGE generate "a fox on a blue background" --model "$WORK/nano" --size 256 --seed 1 ${steps[@]+"${steps[@]}"} \
  -o "$WORK/fox.png"
