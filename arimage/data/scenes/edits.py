"""Edit pairs: a scene, an instruction in both languages, and the scene that follows from it.

An edit changes the description of the scene, never its pixels; since layers depend on their own part only, whatever
the edit does not touch is the same pixel for pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from arimage.data.scenes import vocabulary as words
from arimage.data.scenes.compose import CORNERS, PLACES, Composer
from arimage.data.scenes.spec import Background, Lettering, SceneSpec, Subject
from arimage.data.sprites import Concept
from arimage.errors import DataError

Size = tuple[int, int]


@dataclass(frozen=True)
class Edit:
    """An edit before it is drawn.

    Attributes:
        sources: the scenes that it starts from.
        target: the scene that it leads to.
        instructions: by language.
        local: the change is confined to some boxes (else the background may change everywhere).
        masked: goes with a mask.
    """

    sources: tuple[SceneSpec, ...]
    target: SceneSpec
    instructions: dict[str, str]
    local: bool = True
    masked: bool = False


class Editor:
    """Makes edits of every family."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.families: dict[str, Callable[[Random, Size], Edit]] = {
            "background": self.background,
            "replace": self.replace,
            "add": self.add,
            "remove": self.remove,
            "move": self.move,
            "recolor": self.recolor,
            "add text": self.add_text,
            "change text": self.change_text,
            "remove text": self.remove_text,
            "style": self.style,
            "insert": self.insert,
            "combine": self.combine,
            "identity": self.identity,
            "inpaint": self.inpaint,
        }

    def make(self, random: Random, family: str, size: Size) -> Edit:
        """An edit of a family that the split allows."""

        def good(edit: Edit) -> bool:
            if self.composer.settings.held is not None:
                return self.composer.allowed(edit.target)
            return all(self.composer.allowed(spec) for spec in (edit.target, *edit.sources))

        return self.composer.until(random, lambda random: self.families[family](random, size), good)

    def background(self, random: Random, size: Size) -> Edit:
        scene = self._scene(random, size)
        target = replace(scene, background=self.composer.background(random, scene.background.first.name))
        return Edit((scene,), target, self.repainting(random, target.background), local=False)

    def repainting(self, random: Random, background: Background) -> dict[str, str]:
        """Instructions, by language, that lead to a background."""
        en, zh = self._backdrop(random, background)
        return {
            "en": random.choice((f"Change the background to {en}", f"make it {en}", f"Put it on {en} instead",
                                 f"Replace the background with {en}")),
            "zh": random.choice((f"把背景换成{zh}", f"将背景改为{zh}", f"背景改成{zh}")),
        }  # fmt: skip

    def replace(self, random: Random, size: Size) -> Edit:
        scene = self._scene(random, size)
        index, old = self._one_of(random, scene)
        new = replace(old, concept=self._other_concept(random, scene), tint=None)
        en, zh = self._names(old), self._names(new)
        instructions = {
            "en": random.choice((f"Replace the {en['en']} with {words.with_article(zh['en'])}",
                                 f"Turn the {en['en']} into {words.with_article(zh['en'])}",
                                 f"Swap the {en['en']} for {words.with_article(zh['en'])}")),
            "zh": random.choice((f"把{en['zh']}换成{zh['zh']}", f"将{en['zh']}替换为{zh['zh']}",
                                 f"把{en['zh']}变成{zh['zh']}")),
        }  # fmt: skip
        return Edit((scene,), self._with(scene, index, new), instructions)

    def add(self, random: Random, size: Size) -> Edit:
        target = replace(self._empty(random, size), subjects=self._subjects(random))
        index, new = self._one_of(random, target)
        scene = replace(target, subjects=tuple(s for i, s in enumerate(target.subjects) if i != index))
        return Edit((scene,), target, self._addition(random, new))

    def remove(self, random: Random, size: Size) -> Edit:
        scene = replace(self._empty(random, size), subjects=self._subjects(random))
        index, old = self._one_of(random, scene)
        target = replace(scene, subjects=tuple(s for i, s in enumerate(scene.subjects) if i != index))
        name = self._names(old)
        instructions = {
            "en": random.choice((f"Remove the {name['en']}", f"Delete the {name['en']}",
                                 f"Take the {name['en']} away", f"erase the {name['en']}")),
            "zh": random.choice((f"去掉{name['zh']}", f"删除{name['zh']}", f"把{name['zh']}移除")),
        }  # fmt: skip
        return Edit((scene,), target, instructions)

    def move(self, random: Random, size: Size) -> Edit:
        places = [place for place in PLACES if place != "center"]
        place, new_place = random.sample(places, 2)
        subject = self.composer.subject(random, place, 0.5)
        scene = replace(self._empty(random, size), subjects=(subject,))
        x, y = PLACES[new_place]
        target = self._with(scene, 0, replace(subject, x=x, y=y, place=new_place))
        name = self._names(subject)
        where = {language: words.place(random, new_place, language) for language in ("en", "zh")}
        to = where["en"].replace("in the ", "into the ").replace("on the ", "to the ").replace("at the ", "to the ")
        instructions = {
            "en": random.choice((f"Move the {name['en']} {to}", f"Put the {name['en']} {where['en']}")),
            "zh": random.choice((f"把{name['zh']}移到{where['zh']}", f"将{name['zh']}放到{where['zh']}")),
        }
        return Edit((scene,), target, instructions)

    def recolor(self, random: Random, size: Size) -> Edit:
        scene = self._scene(random, size)
        index, old = self._one_of(random, scene)
        names = [n for n in self.composer.colors if n not in (scene.background.first.name, "black", "white")]
        new = replace(old, tint=self.composer.shade(random, random.choice(names)))
        assert new.tint is not None
        name = self._names(old)
        color = {language: words.colour(random, new.tint, language) for language in ("en", "zh")}
        instructions = {
            "en": random.choice((f"Make the {name['en']} {color['en']}", f"Paint the {name['en']} {color['en']}",
                                 f"Change the colour of the {name['en']} to {color['en']}")),
            "zh": random.choice((f"把{name['zh']}变成{color['zh']}", f"将{name['zh']}的颜色改为{color['zh']}",
                                 f"把{name['zh']}涂成{color['zh']}")),
        }  # fmt: skip
        return Edit((scene,), self._with(scene, index, new), instructions)

    def add_text(self, random: Random, size: Size) -> Edit:
        target = self._lettered(random, size)
        assert target.lettering is not None
        scene = replace(target, lettering=None)
        where = {language: words.place(random, target.lettering.place, language) for language in ("en", "zh")}
        text = {language: words.writing(random, target.lettering, language) for language in ("en", "zh")}
        instructions = {
            "en": random.choice((f"Add {text['en']} {where['en']}", f"Write {text['en']} {where['en']}")),
            "zh": random.choice((f"在{where['zh']}加上{text['zh']}", f"{where['zh']}写上{text['zh']}")),
        }
        return Edit((scene,), target, instructions)

    def change_text(self, random: Random, size: Size) -> Edit:
        crowded = self._crowded(random)
        scene = self.composer.picture(random, "lines", size) if crowded else self._lettered(random, size)
        assert scene.lettering is not None
        index = random.randrange(len(scene.lettering.lines)) if crowded else 0
        lettering = self._reworded(random, scene.lettering, scene, index)
        before, after = (text.lines[index] for text in (scene.lettering, lettering))
        old, new = ({language: words.quoted(random, text, language) for language in ("en", "zh")}
                    for text in (before, after))  # fmt: skip
        en = [f"Replace the text {old['en']} with {new['en']}"]
        zh = [f"将{old['zh']}换成{new['zh']}"]
        if not crowded:
            en = [f"Change the text to {new['en']}", *en, f"Make it say {new['en']}"]
            zh = [f"把文字改成{new['zh']}", *zh, f"文字改为{new['zh']}"]
        instructions = {"en": random.choice(en), "zh": random.choice(zh)}
        return Edit((scene,), replace(scene, lettering=lettering), instructions)

    def remove_text(self, random: Random, size: Size) -> Edit:
        scene = self._lettered(random, size)
        instructions = {
            "en": random.choice(("Remove the text", "Delete the writing", "erase all text")),
            "zh": random.choice(("去掉文字", "删除文字", "把字擦掉")),
        }
        return Edit((scene,), replace(scene, lettering=None), instructions)

    def style(self, random: Random, size: Size) -> Edit:
        if len(self.composer.styles) < 2:
            raise DataError("changing the style needs sprites of at least two styles")
        scene = self._scene(random, size)
        old = scene.subjects[0].style
        new = random.choice([style for style in self.composer.styles if style != old])
        target = replace(scene, subjects=tuple(replace(subject, style=new) for subject in scene.subjects))
        name = {language: words.style(random, new, language) for language in ("en", "zh")}
        instructions = {
            "en": random.choice((f"Change the style to {name['en']}", f"in {name['en']} style",
                                 f"Redraw this in {name['en']} style")),
            "zh": random.choice((f"改成{name['zh']}风格", f"换成{name['zh']}风格", f"用{name['zh']}风格重画")),
        }  # fmt: skip
        return Edit((scene,), target, instructions)

    def insert(self, random: Random, size: Size) -> Edit:
        pair = replace(self._empty(random, size), subjects=self.composer.pair(random))
        index, new = self._one_of(random, pair)
        first = self._portrait(random, size, new)
        second = replace(pair, subjects=tuple(s for i, s in enumerate(pair.subjects) if i != index))
        name = self._names(new)
        where = {language: words.place(random, new.place, language) for language in ("en", "zh")}
        instructions = {
            "en": random.choice((f"Put the {name['en']} of picture 1 into picture 2, {where['en']}",
                                 f"Add the {name['en']} from the first picture to the second, {where['en']}")),
            "zh": random.choice((f"把图1中的{name['zh']}放到图2的{where['zh']}",
                                 f"将第一张图的{name['zh']}加到第二张图的{where['zh']}")),
        }  # fmt: skip
        return Edit((first, second), pair, instructions)

    def combine(self, random: Random, size: Size) -> Edit:
        target = replace(self._empty(random, size), subjects=self.composer.pair(random))
        sources = tuple(self._portrait(random, size, subject) for subject in target.subjects)
        first, second = (self._names(subject) for subject in target.subjects)
        places = [subject.place for subject in target.subjects]
        en, zh = self._backdrop(random, target.background)
        at = [{language: words.place(random, place, language) for language in ("en", "zh")} for place in places]
        instructions = {
            "en": random.choice((
                f"The {first['en']} of picture 1 {at[0]['en']}, the {second['en']} of picture 2 {at[1]['en']}, on {en}",
                f"Combine both: the {first['en']} {at[0]['en']}, the {second['en']} {at[1]['en']}, {en}")),
            "zh": random.choice((
                f"图1的{first['zh']}在{at[0]['zh']}，图2的{second['zh']}在{at[1]['zh']}，{zh}",
                f"把两张图合在一起：{first['zh']}在{at[0]['zh']}，{second['zh']}在{at[1]['zh']}，{zh}")),
        }  # fmt: skip
        return Edit(sources, target, instructions, local=False)

    def identity(self, random: Random, size: Size) -> Edit:
        place = random.choice(list(PLACES)) if random.random() < 0.5 else "center"
        subject = self.composer.subject(random, place, 1.0 if place == "center" else 0.5)
        target = replace(self._empty(random, size), subjects=(subject,))
        source = self._portrait(random, size, subject, unlike=target.background.first.name)
        name = self._names(subject)
        en, zh = self._backdrop(random, target.background)
        where = {language: words.place(random, place, language) for language in ("en", "zh")}
        told = place != "center"
        instructions = {
            "en": random.choice((f"The same {name['en']}", f"Keep the {name['en']}", f"this {name['en']}"))
            + (f" {where['en']}" if told else "") + random.choice((f" on {en}", f", with {en}")),
            "zh": random.choice((f"同一个{name['zh']}", f"保留{name['zh']}", f"这个{name['zh']}"))
            + (f"，放在{where['zh']}" if told else "") + random.choice((f"，{zh}", f"，换到{zh}上")),
        }  # fmt: skip
        return Edit((source,), target, instructions, local=False)

    def inpaint(self, random: Random, size: Size) -> Edit:
        edit = random.choice((self.add, self.replace, self.remove, self.change_text))(random, size)
        return replace(edit, masked=True)

    # Parts

    def _empty(self, random: Random, size: Size) -> SceneSpec:
        return SceneSpec(*size, self.composer.background(random))

    def _scene(self, random: Random, size: Size) -> SceneSpec:
        if self._crowded(random):
            return self.composer.picture(random, "corners", size)
        task = random.choices(("subject", "subjects"), (0.65, 0.35))[0]
        return self.composer.picture(random, task, size)

    def _subjects(self, random: Random) -> tuple[Subject, ...]:
        return self.composer.row(random, CORNERS) if self._crowded(random) else self.composer.pair(random)

    def _crowded(self, random: Random) -> bool:
        share = self.composer.settings.crowded
        return bool(share) and random.random() < share

    def _lettered(self, random: Random, size: Size) -> SceneSpec:
        return self.composer.until(
            random,
            lambda random: self.composer.picture(random, "text", size),
            lambda spec: spec.lettering is not None,
        )

    def _reworded(self, random: Random, old: Lettering, scene: SceneSpec, index: int) -> Lettering:
        """The lettering with another line in place of one; several keep their language and their common width."""
        lines = old.lines

        def make(random: Random) -> Lettering:
            line, language = self.composer.text(random, old.language if len(lines) > 1 else None)
            text = "\n".join([*lines[:index], line, *lines[index + 1 :]])
            return self.composer.fitted(replace(old, text=text, language=language), scene)

        names = {old.font}
        return self.composer.until(
            random,
            make,
            lambda new: (
                len(set(new.lines)) == len(lines)
                and new.text != old.text
                and names <= {font.name for font in self.composer.faces(new.text)}
                and (len(lines) == 1 or new.columns == old.columns)
            ),
        )

    def _portrait(self, random: Random, size: Size, subject: Subject, unlike: str | None = None) -> SceneSpec:
        """A subject alone, large, on a plain background of its own."""
        background = Background("plain", self.composer.color(random, unlike))
        size_alone = subject.size if self.composer.settings.cells else random.uniform(0.5, 0.75)
        alone = replace(subject, x=0.5, y=0.5, size=size_alone, place="center", scale="")
        return SceneSpec(*size, background, (alone,))

    def _one_of(self, random: Random, scene: SceneSpec) -> tuple[int, Subject]:
        index = random.randrange(len(scene.subjects))
        return index, scene.subjects[index]

    def _with(self, scene: SceneSpec, index: int, subject: Subject) -> SceneSpec:
        subjects = list(scene.subjects)
        subjects[index] = subject
        return replace(scene, subjects=tuple(subjects))

    def _other_concept(self, random: Random, scene: SceneSpec) -> str:
        return self.composer.until(random, self.composer.concept, lambda concept: concept not in scene.concepts)

    def _concept(self, subject: Subject) -> Concept:
        return self.composer.assets.sprites.concepts[subject.concept]

    def _names(self, subject: Subject) -> dict[str, str]:
        return self._concept(subject).names

    def _backdrop(self, random: Random, background: Background) -> tuple[str, str]:
        return words.backdrop(random, background, "en"), words.backdrop(random, background, "zh")

    def _addition(self, random: Random, new: Subject) -> dict[str, str]:
        thing = {language: words.thing(random, new, self._concept(new), language) for language in ("en", "zh")}
        where = {language: words.place(random, new.place, language) for language in ("en", "zh")}
        return {
            "en": random.choice((f"Add {thing['en']} {where['en']}", f"Put {thing['en']} {where['en']}")),
            "zh": random.choice((f"在{where['zh']}加{thing['zh']}", f"{where['zh']}放上{thing['zh']}")),
        }
