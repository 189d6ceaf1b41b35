"""Captions of a scene: tags, one sentence, a long description; English, Chinese, and both mixed.

Every statement is read off the scene, so a caption is true by construction; what it leaves out differs.
"""

from random import Random

from arimage.data.assets import Assets
from arimage.data.scenes import vocabulary as words
from arimage.data.scenes import wordings
from arimage.data.scenes.spec import SceneSpec, Subject

FORMS = ("tags", "sentence", "long")
LANGUAGES = ("en", "zh")


def captions(
    spec: SceneSpec, assets: Assets, random: Random, styles_named: float, free_wordings: int = 0
) -> dict[str, str]:
    """All captions by ``language/form``, and ``mixed``; in free words ``language/sentence/free 1`` and so on."""
    told = random.random() < styles_named
    teller = _Teller(spec, assets, random, told)
    found = {f"{language}/{form}": getattr(teller, form)(language) for language in LANGUAGES for form in FORMS}
    found["mixed"] = teller.mixed()
    for language in LANGUAGES:
        for number in range(1, free_wordings + 1):
            if said := teller.free(language):
                found[f"{language}/sentence/free {number}"] = said
    return found


class _Teller:
    def __init__(self, spec: SceneSpec, assets: Assets, random: Random, style_told: bool) -> None:
        self.spec, self.assets, self.random = spec, assets, random
        self.style_told = style_told and bool(spec.subjects)

    def _things(self, language: str) -> list[str]:
        """The subjects, as noun phrases."""
        if self.spec.alike:
            first = self.spec.subjects[0]
            return [words.thing(self.random, first, self._concept(first), language, len(self.spec.subjects))]
        return [words.thing(self.random, s, self._concept(s), language) for s in self.spec.subjects]

    def _concept(self, subject: Subject):  # type: ignore[no-untyped-def]
        return self.assets.sprites.concepts[subject.concept]

    def _style(self, language: str) -> str:
        return words.style(self.random, self.spec.subjects[0].style, language) if self.style_told else ""

    def _placed(self, language: str, phrase: str, subject: Subject, certain: bool) -> str:
        if not subject.place or self.spec.alike or (subject.place == "center" and not certain):
            return phrase
        where = words.place(self.random, subject.place, language)
        return f"{where}有{phrase}" if language == "zh" else f"{phrase} {where}"

    def tags(self, language: str) -> str:
        """``fox, blue background, flat style, left``."""
        spec, random = self.spec, self.random
        parts = []
        for subject in spec.subjects if not spec.alike else spec.subjects[:1]:
            name = self._concept(subject).names[language]
            described = [*words.adjectives(random, subject, language), name]
            if spec.alike:
                parts.append(words.thing(random, subject, self._concept(subject), language, len(spec.subjects)))
            else:
                parts.append(("" if language == "zh" else " ").join(described))
                if subject.place and (subject.place != "center" or random.random() < 0.3):
                    parts[-1] += ("" if language == "zh" else " ") + words.place(random, subject.place, language)
        if spec.lettering is not None:
            parts.append(words.writing(random, spec.lettering, language, named_color=random.random() < 0.7))
        backdrop = words.backdrop(random, spec.background, language)
        parts.append(backdrop if language == "zh" else backdrop.split(" ", 1)[1])
        if style := self._style(language):
            parts.append(f"{style}风格" if language == "zh" else f"{style} style")
        if random.random() < 0.5:
            random.shuffle(parts)
        return ("，" if language == "zh" else ", ").join(parts)

    def sentence(self, language: str) -> str:
        """One sentence that names everything once."""
        return self._chinese_sentence() if language == "zh" else self._english_sentence()

    def _english_sentence(self) -> str:
        spec, random = self.spec, self.random
        backdrop = words.backdrop(random, spec.background, "en")
        things = [
            self._placed("en", phrase, subject, random.random() < 0.3)
            for phrase, subject in zip(self._things("en"), spec.subjects)
        ]
        if not things:
            assert spec.lettering is not None
            body = words.writing(random, spec.lettering, "en")
        else:
            body = words.joined(things)
            if spec.lettering is not None:
                body += random.choice((" with ", " and ")) + words.writing(random, spec.lettering, "en")
                if spec.lettering.place != "center":
                    body += " " + words.place(random, spec.lettering.place, "en")
        style = self._style("en")
        sentence = f"{body} {random.choice(('on', 'on', 'against', 'in front of'))} {backdrop}"
        if style:
            kind = words.with_article(random.choice((f"{style} illustration of", f"{style} picture of")))
            sentence = random.choice(
                (f"{kind} {sentence}", f"{sentence}, {style} style", f"{sentence} in {style} style")
            )
        elif random.random() < 0.25:
            sentence = random.choice(("a picture of ", "an illustration of ", "draw ", "please draw ")) + sentence
        sentence = sentence[0].upper() + sentence[1:] if random.random() < 0.6 else sentence
        return sentence + ("." if random.random() < 0.5 else "")

    def _chinese_sentence(self) -> str:
        spec, random = self.spec, self.random
        backdrop = words.backdrop(random, spec.background, "zh")
        things = [
            self._placed("zh", phrase, subject, random.random() < 0.3)
            for phrase, subject in zip(self._things("zh"), spec.subjects)
        ]
        parts = ["，".join(things) if any("有" in thing for thing in things) else "和".join(things)] if things else []
        if spec.lettering is not None:
            where = ""
            if things and spec.lettering.place != "center":
                where = words.place(random, spec.lettering.place, "zh") + random.choice(("", "是"))
            parts.append(where + words.writing(random, spec.lettering, "zh"))
        body = "，".join(parts)
        style = self._style("zh")
        forms = [f"{backdrop}上，{body}", f"{body}，{backdrop}", f"在{backdrop}上的{body}"]
        sentence = random.choice(forms if "有" not in body[:4] else forms[:2])
        if style:
            sentence = random.choice((f"{style}风格的插画：{sentence}", f"{sentence}，{style}风格"))
        elif random.random() < 0.25:
            sentence = random.choice(("画", "请画", "一张图：")) + sentence
        return sentence + ("。" if random.random() < 0.5 else "")

    def free(self, language: str) -> str | None:
        """A sentence in free words, where there are some for this scene."""
        spec, random = self.spec, self.random
        parts = []
        for phrase, subject in zip(self._things(language), spec.subjects):
            if subject.place and not spec.alike and (subject.place != "center" or random.random() < 0.2):
                where = wordings.place(random, subject.place, language)
                link = random.choice(("有", "是", ""))
                phrase = f"{where}{link}{phrase}" if language == "zh" else f"{phrase} {where}"
            parts.append(phrase)
        if spec.lettering is not None:
            text = words.writing(random, spec.lettering, language, named_color=random.random() < 0.7)
            if parts and spec.lettering.place != "center":
                where = wordings.place(random, spec.lettering.place, language)
                text = f"{where}{text}" if language == "zh" else f"{text} {where}"
            parts.append(text)
        body = "，".join(parts) if language == "zh" else words.joined(parts)
        return wordings.sentence(random, body, spec, self._style(language), language)

    def long(self, language: str) -> str:
        """Several sentences: what kind of picture, what is where, what is written, what is behind."""
        return self._chinese_long() if language == "zh" else self._english_long()

    def _english_long(self) -> str:
        spec, random = self.spec, self.random
        style = self._style("en")
        kind = f"{style} illustration" if style else random.choice(("simple illustration", "clean picture", "drawing"))
        things = self._things("en")
        backdrop = words.backdrop(random, spec.background, "en")
        sentences = []
        if things:
            opening = random.choice(("This is {0} of {1}.", "{0} of {1}.", "The picture is {0} that shows {1}."))
            sentences.append(opening.format(words.with_article(kind), words.joined(things)))
        else:
            sentences.append(f"{words.with_article(kind)} with nothing but lettering.")
        if not spec.alike:
            for subject in spec.subjects:
                if subject.place:
                    name = words.the_thing(random, subject, self._concept(subject), "en")
                    where = words.place(random, subject.place, "en")
                    sentences.append(random.choice((f"{name} is {where}.", f"{name} stands {where} of the picture.")))
        if spec.lettering is not None:
            where = words.place(random, spec.lettering.place or "center", "en")
            text = words.writing(random, spec.lettering, "en")
            sentences.append(random.choice((f"{where} there is {text}.", f"it shows {text} {where}.")))
        sentences.append(random.choice((f"Everything is set on {backdrop}.", f"Behind it is {backdrop}.")))
        return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)

    def _chinese_long(self) -> str:
        spec, random = self.spec, self.random
        style = self._style("zh")
        kind = f"{style}风格的插画" if style else random.choice(("简洁的插画", "图画", "干净的画面"))
        things = self._things("zh")
        sentences = [f"这是一幅{kind}，画的是{'和'.join(things)}。" if things else f"这是一幅{kind}，只有文字。"]
        if not spec.alike:
            for subject in spec.subjects:
                if subject.place:
                    name = words.the_thing(random, subject, self._concept(subject), "zh")
                    sentences.append(f"{name}在画面的{words.place(random, subject.place, 'zh')}。")
        if spec.lettering is not None:
            where = words.place(random, spec.lettering.place or "center", "zh")
            sentences.append(f"画面{where}是{words.writing(random, spec.lettering, 'zh')}。")
        sentences.append(f"背景是{words.backdrop(random, spec.background, 'zh')}。")
        return "".join(sentences)

    def mixed(self) -> str:
        """Both languages in one caption, as people write them."""
        spec, random = self.spec, self.random
        things = self._things(random.choice(LANGUAGES))
        parts = [words.joined(things)] if things else []
        if spec.lettering is not None:
            parts.append(words.writing(random, spec.lettering, random.choice(LANGUAGES)))
        parts.append(words.backdrop(random, spec.background, random.choice(LANGUAGES)))
        if style := self._style(random.choice(LANGUAGES)):
            parts.append(style)
        return "，".join(parts)
