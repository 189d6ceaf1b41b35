"""Whether the drawn texts can be read: OCR on scenes whose captions promise a text, and on scenes without any.

Two figures: the text in its known box is read (recognition alone), and it is found in the whole picture (the reader's
own detection too, which overlooks single characters and calligraphy).

python benchmarks/drawn_text_ocr.py data/nano --count 200
"""

import argparse
from pathlib import Path

import numpy as np

from arimage.data.assets import Assets
from arimage.data.scenes import Scenes
from arimage.data.scenes.settings import SceneSettings
from arimage.evaluation.reading import optical_reader


def normal(text: str) -> str:
    """Letters, digits and Chinese characters, lower case."""
    return "".join(character for character in text.casefold() if character.isalnum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rating", type=int, default=4, help="only scenes that are rated at least this")
    parser.add_argument("--misses", type=Path, help="folder for the pictures that were misread")
    given = parser.parse_args()
    assets = Assets.open(given.folder)
    finder, reader = optical_reader(), optical_reader()
    shares = {"text": 1.0, "typography": 1.0}
    sizes = ((given.side, given.side),)
    scenes = Scenes(assets, SceneSettings(tasks=shares, sizes=sizes, minimum_rating=given.rating))
    right = {"en": 0, "zh": 0}
    spotted = 0
    total = {"en": 0, "zh": 0}
    for index in range(given.count):
        record = scenes[index]
        lettering = record.truth["spec"]["lettering"]
        left, top, right_edge, bottom = record.truth["text"]
        margin = round(0.15 * (bottom - top))
        box = (max(0, left - margin), max(0, top - margin), right_edge + margin, bottom + margin)
        result = reader(np.asarray(record.image.crop(box))[:, :, ::-1], use_det=False, use_cls=False, use_rec=True)
        read = normal("".join(result.txts or ()))
        found = normal(lettering["text"]) in read
        whole = finder(np.asarray(record.image)[:, :, ::-1])
        spotted += normal(lettering["text"]) in normal("".join(whole.txts or ()))
        total[lettering["language"]] += 1
        right[lettering["language"]] += found
        if not found:
            print(f"  {index}: {lettering['text']!r} in {lettering['font']}, read {read!r}")
            if given.misses:
                given.misses.mkdir(parents=True, exist_ok=True)
                record.image.save(given.misses / f"{index}.png")
    for language, count in total.items():
        print(f"{language}: {right[language]} of {count} = {right[language] / max(1, count):.1%}")
    print(f"found in the whole picture: {spotted} of {given.count} = {spotted / given.count:.1%}")
    print(f"all: {sum(right.values())} of {sum(total.values())} = {sum(right.values()) / sum(total.values()):.1%}")
    blank = Scenes(assets, SceneSettings(tasks={"subject": 1.0, "subjects": 1.0}, sizes=sizes))
    falsely = sum(bool(finder(np.asarray(blank[index].image)[:, :, ::-1]).txts) for index in range(50))
    print(f"something read on scenes without text: {falsely} of 50")


if __name__ == "__main__":
    main()
