#!/usr/bin/env bash
# The pictures of the README and of docs/gallery.md, from the embedded model.
#   docs/gallery.sh
set -euo pipefail
cd "$(dirname "$0")/pictures"
ARIMAGE=${ARIMAGE:-arimage}
make() { $ARIMAGE generate "$2" --seed "${3:-1}" --size 256 -o "$1.png"; }

make fox "a fox on a blue background"
make rocket "a rocket on a purple background"
make pizza "a pizza on a green background"
make cat "黄色背景上的一只猫"
make guitar "红色背景上的一把吉他，贴纸风格"
make dog "a dog on the left, pink background"
make pair "a red apple on the left and a birthday cake on the right on a white background"
make open 'the word "OPEN" in white on a red background'
make music 'a guitar with the word "MUSIC" in black at the top on a yellow background'
make hello "蓝色背景，白色文字“你好”"

edit() { $ARIMAGE edit "$1.png" "$2" --seed 1 --overwrite --no-recipe -o "$3.png"; }

edit fox "Change the background to a yellow background" fox-yellow
edit rocket "can you make the background light blue please" rocket-blue
edit open 'Change the text to "CLOSED"' closed
edit dog "Replace the dog with a cat" dog-to-cat
edit dog "a horse instead of the dog" dog-to-horse
$ARIMAGE upscale fox.png --seed 1 --no-recipe -o fox-large.png

# Scenes of three rows of the evaluation, by index; wants the artwork (arimage data sprites -o data/nano).
sheet() {
  $ARIMAGE evaluate ../../configs/nano/evaluate.yaml cases="$3" --group "$1" assets=../../data/nano options.tier=fast -o evaluation
  python3 -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(128).save(sys.argv[2], optimize=True)' \
    evaluation/sheet.png "$2"
  rm -r evaluation
}
sheet subject nano-evaluation.png 50
sheet "edit background" nano-edits.png 150
sheet identity nano-identity.png 150
