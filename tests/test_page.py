"""The page of ``arimage serve`` in a real browser."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arimage.images.provenance import read_recipe
from arimage.inference.pipeline import ImagePipeline
from tests.conftest import photo
from tests.test_server_page import png

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")
pytest.importorskip("selenium", reason="the page is tested with selenium and Chromium: pip install selenium")
from selenium import webdriver
from selenium.webdriver import ActionChains, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.server_thread import Running, until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-dev-shm-usage",
    "force-prefers-reduced-motion",
    "lang=en",
    "window-size=1280,800",
)
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="the page is tested with Chromium: apt install chromium chromium-driver"
)
CONTROLS = {"application", "button", "combobox", "radio", "slider", "spinbutton", "textbox"}
SIZE = 128
# Pixels of a picture that the page shows, as the browser decodes them.
PIXELS = """
const shown = typeof arguments[0] === "string" ? document.querySelector(arguments[0]) : arguments[0];
const canvas = document.createElement("canvas");
canvas.width = shown.naturalWidth ?? shown.width;
canvas.height = shown.naturalHeight ?? shown.height;
const context = canvas.getContext("2d");
context.drawImage(shown, 0, 0);
const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
return [canvas.width, canvas.height, btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""))];
"""
# Everything that a run shows on its way, as it comes.
WATCH = """
window.seen = { statuses: new Set(), previews: new Set(), tokens: new Set() };
new MutationObserver(() => {
  const status = document.querySelector(".run-head")?.dataset.status;
  if (status) seen.statuses.add(status);
  for (const preview of document.querySelectorAll(".preview:not([hidden])")) seen.previews.add(preview.src);
  const tokens = document.querySelector(".track")?.getAttribute("aria-valuenow");
  if (tokens) seen.tokens.add(Number(tokens));
}).observe(document.querySelector("#stage"), { subtree: true, childList: true, attributes: true });
"""
SEEN = "return Object.fromEntries(Object.entries(seen).map(([name, values]) => [name, [...values]]))"
FORGET = """
localStorage.clear();
const request = indexedDB.deleteDatabase("arimage");
request.onsuccess = request.onerror = arguments[0];
"""
# A file that is dropped onto an element, or pasted.
DROP = """
const bytes = Uint8Array.from(atob(arguments[1]), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
const usual = { bubbles: true, cancelable: true };
const send = (target, kind) => target.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, ...usual }));
if (arguments[0] === "paste") {
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, ...usual }));
} else {
  send(document.body, "dragenter");
  send(document.querySelector(arguments[0]), "drop");
}
"""


class Page:
    """The page in a browser, and the server that it talks to."""

    def __init__(self, pipeline: ImagePipeline, downloads: Path) -> None:
        self.downloads = downloads
        options = ChromeOptions()
        options.binary_location = BROWSER
        for flag in FLAGS:
            options.add_argument(f"--{flag}")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, ChromeService(DRIVER))
        self.server = Running(pipeline, grace=5)
        self.address = f"http://127.0.0.1:{self.server.port}/"

    def open(self) -> None:
        self.driver.get(self.address)
        until(lambda: self.run("return document.querySelector('.chips, .picture') !== null"))

    def close(self) -> None:
        self.driver.quit()
        self.server.close()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def pixels(self, shown: str | WebElement) -> np.ndarray:
        """(height, width, 4) uint8."""
        if isinstance(shown, str):
            until(lambda: self.run("return document.querySelector(arguments[0])?.complete ?? false", shown))
        width, height, data = self.run(PIXELS, shown)
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)

    def ready(self, selector: str) -> WebElement:
        """An element that a person can use, as soon as it is there; further settings are unfolded for it."""

        def usable() -> bool:
            self.run("document.querySelector('.more')?.setAttribute('open', '')")
            return self.count(selector) > 0 and self.find(selector).is_displayed() and self.find(selector).is_enabled()

        until(usable)
        return self.find(selector)

    def type(self, selector: str, text: str) -> None:
        field = self.ready(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, text)

    def fresh(self) -> None:
        """An empty page, without history or settings."""
        self.driver.get(f"{self.address}page/icon.svg")  # of the same origin, and uses none of it
        self.driver.execute_async_script(FORGET)
        self.open()
        self.run("document.querySelector('.more').open = true")

    def drop(self, zone: str, picture: bytes) -> None:
        self.run(DROP, zone, base64.b64encode(picture).decode())

    def finished(self) -> None:
        until(lambda: self.count(".picture .frame img"))


@pytest.fixture(scope="module")
def shared(pipeline: ImagePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(pipeline, tmp_path_factory.mktemp("downloads"))
    yield page
    page.close()


@pytest.fixture
def page(shared: Page) -> Page:
    shared.fresh()
    return shared


def test_a_prompt_becomes_previews_and_then_the_picture_that_the_library_makes(
    page: Page, pipeline: ImagePipeline
) -> None:
    assert not page.find("#go").is_enabled()
    page.type("#prompt", "a “fox”")
    page.type("#seed", "5")
    page.type("#steps", "8")
    page.run(WATCH)
    page.find("#prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    page.finished()
    seen = page.run(SEEN)
    assert {"tokens", "diffusion"} <= set(seen["statuses"])
    assert seen["previews"]
    assert len(seen["tokens"]) > 2
    made = pipeline.generate("a “fox”", size=SIZE, seed=5, tier="fast", steps=8)[0]
    shown = page.pixels(".frame img")
    assert (shown[..., :3] == np.asarray(made.image)).all()
    assert page.count("#history .thumb") == 1


def test_several_pictures_are_a_grid_of_which_each_can_be_opened(page: Page) -> None:
    page.type("#prompt", "a fox")
    page.type("#steps", "1")
    for _ in range(2):
        page.ready("#more").click()
    page.ready("#go").click()
    until(lambda: page.count(".cell:enabled") == 3)
    page.ready(".cell:nth-child(2)").click()
    page.finished()
    assert page.count("#history .thumb") == 3
    opened = page.pixels(".frame img")
    page.find("body").send_keys(Keys.ARROW_LEFT)  # a newer one
    assert not (page.pixels(".frame img") == opened).all()
    page.ready("#vary").click()
    until(lambda: page.count("#history .thumb") == 6)
    assert page.server.figure("arimage_pictures_total") >= 6


def test_what_a_mask_leaves_out_stays_bit_for_bit(page: Page) -> None:
    page.drop("#drop-edit", png(photo(96, 80)))
    until(lambda: page.count("#mask"))
    mask = page.find("#mask")
    strokes = ActionChains(page.driver, duration=20).move_to_element_with_offset(mask, -60, -40).click_and_hold()
    strokes.move_by_offset(50, 0).move_by_offset(0, 30).release().perform()
    page.ready("#invert").click()
    page.ready("#undo").click()
    painted = page.pixels(mask)[..., 3] > 127
    assert 0 < painted.mean() < 0.5
    page.type("#instruction", "make it green")
    page.type("#steps", "2")
    page.ready("#go").click()
    until(lambda: page.count(".compare"))
    until(lambda: page.run("return document.querySelector('.compare img').naturalWidth > 0"))
    before, after = page.pixels(".compare img"), page.pixels(".compare .over")
    assert (before[..., :3] == np.asarray(photo(96, 80))).all()
    assert (after[~painted] == before[~painted]).all()
    assert (after[painted] != before[painted]).any()
    slider = page.find(".compare input")
    slider.send_keys(Keys.END)
    assert page.run("return document.querySelector('.compare').style.getPropertyValue('--share')") == "100%"
    page.ready("#back-to-mask").click()
    assert (page.pixels(page.find("#mask"))[..., 3] > 127).tolist() == painted.tolist()


def test_a_side_can_be_extended_by_mouse_and_by_key(page: Page) -> None:
    page.drop("#drop-edit", png(photo(96, 96)))
    until(lambda: page.count(".handle.right"))
    handle = page.find(".handle.right")
    ActionChains(page.driver, duration=20).drag_and_drop_by_offset(handle, 24, 0).perform()
    page.find(".handle.top").send_keys(Keys.ARROW_UP)
    right, top = (int(page.find(f".handle.{side}").get_attribute("aria-valuenow")) for side in ("right", "top"))
    assert right > 0
    assert top == 8
    page.type("#instruction", "more of it")
    page.type("#steps", "1")
    page.ready("#go").click()
    until(lambda: page.count(".compare"))
    after = page.pixels(".compare .over")
    assert after.shape[:2] == (96 + top, 96 + right)
    assert (after[top:, :96, :3] == np.asarray(photo(96, 96))).all()


def test_a_mask_can_be_painted_by_keys_and_every_step_undone(page: Page) -> None:
    page.drop("#drop-edit", png(photo(96, 96)))
    until(lambda: page.count("#mask"))
    mask = page.find("#mask")
    shares = []
    for keys in (" ", Keys.ARROW_RIGHT * 3 + " ", "x ", "x"):
        mask.send_keys(keys)
        shares.append(float((page.pixels(mask)[..., 3] > 127).mean()))
    assert 0 < shares[2] < shares[1]
    assert shares[0] < shares[1]
    for _ in range(3):
        page.ready("#undo").click()
    assert not page.pixels(mask).any()
    page.ready("#redo").click()
    assert (page.pixels(mask)[..., 3] > 127).mean() == shares[0]
    page.ready("#clear-mask").click()
    assert not page.pixels(mask).any()


def test_the_history_survives_a_reload_and_gives_settings_back(page: Page) -> None:
    page.type("#prompt", "a fox")
    page.type("#seed", "77")
    page.type("#steps", "1")
    page.ready("#go").click()
    page.finished()
    shown = page.pixels(".frame img")
    page.run("localStorage.clear()")
    page.open()
    until(lambda: page.count("#history .thumb") == 1)
    page.ready("#history .thumb").click()
    page.finished()
    assert (page.pixels(".frame img") == shown).all()
    page.ready("#save").click()
    until(lambda: list(page.downloads.glob("*.png")))
    recipe = read_recipe(next(page.downloads.glob("*.png")))
    assert recipe is not None
    assert (recipe.prompt, recipe.seed) == ("a fox", 77)
    page.run("document.querySelector('#reuse').click()")
    fields = {name: page.find(f"#{name}").get_attribute("value") for name in ("prompt", "seed", "steps", "n")}
    assert fields == {"prompt": "a fox", "seed": "77", "steps": "1", "n": "1"}
    assert page.find("#lock").get_attribute("aria-pressed") == "true"


def test_cancelling_ends_the_work_of_the_server(page: Page) -> None:
    page.type("#prompt", "a fox")
    page.type("#steps", "1000")
    page.ready("#go").click()
    until(lambda: page.count(".run-head[data-status=diffusion]"))
    page.ready("#cancel").click()
    until(lambda: page.count(".run-head[data-status=cancelled]"))
    until(lambda: not page.server.worker.busy, 20)
    assert page.find("#go").is_displayed()
    assert page.count("#history .thumb") == 0


def test_a_dropped_picture_restores_prompt_and_settings(page: Page, pipeline: ImagePipeline) -> None:
    seed = 2**62 + 1  # more than a number of JavaScript can hold
    made = pipeline.generate("写着“你好”的牌子", size=(96, 64), seed=seed, steps=3, guidance=2.0, negative_text="no")[0]
    page.drop("#drop-restore", made.to_bytes("webp"))
    until(lambda: page.find("#prompt").get_attribute("value"))
    names = ("prompt", "seed", "width", "height", "steps", "guidance", "negative_text")
    fields = [page.find(f"#{name}").get_attribute("value") for name in names]
    assert fields == ["写着“你好”的牌子", str(seed), "96", "64", "3", "2", "no"]
    page.ready("#go").click()
    page.finished()
    assert (page.pixels(".frame img")[..., :3] == np.asarray(made.image)).all()


def test_a_pasted_picture_is_the_input_until_it_is_removed(page: Page) -> None:
    page.drop("paste", png(photo(40, 48)))
    until(lambda: page.count("#mask"))
    assert "40 × 48" in page.find("#input-card").text
    page.ready("#input-card .square").click()
    until(lambda: page.count(".empty.target"))
    assert not page.find("#go").is_enabled()


def test_a_server_with_a_key_is_asked_with_it(page: Page, pipeline: ImagePipeline) -> None:
    server = Running(pipeline, api_key="secret", grace=5)
    try:
        page.driver.get(f"http://127.0.0.1:{server.port}/")
        for key in ("wrong", "secret"):
            until(lambda: page.count("dialog[open] #key"))
            page.find("#key").send_keys(key, Keys.ENTER)
        until(lambda: page.count(".chips"))
        page.type("#prompt", "a fox")
        until(page.find("#go").is_enabled)
        page.ready("#go").click()
        page.finished()
    finally:
        server.close()


def test_what_the_server_refuses_is_told_and_its_field_marked(page: Page) -> None:
    page.type("#prompt", "a fox")
    page.type("#guidance", "1")
    page.type("#negative_text", "words")
    page.ready("#go").click()
    until(lambda: page.count(".trouble:not([hidden])"))
    assert "negative_text" in page.find(".trouble").text
    assert page.count("[aria-invalid=true]") == 1
    page.run("document.querySelector('#negative_text').value = ''")


def test_the_page_speaks_chinese_and_every_control_has_a_name(page: Page) -> None:
    page.drop("#drop-edit", png(Image.new("RGB", (64, 64))))
    until(lambda: page.count("#mask"))
    for language in ("en", "zh-Hans"):
        assert page.run("return document.documentElement.lang") == language
        nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        controls = [node for node in nodes if node.get("role", {}).get("value") in CONTROLS]
        assert len(controls) > 20
        assert not [node for node in controls if not node["name"]["value"].strip()]
        page.ready("#language").click()


@contextmanager
def phone(page: Page, theme: str = "light") -> Iterator[None]:
    """The page on a small screen."""
    emulate = page.driver.execute_cdp_cmd
    emulate("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})
    emulate("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    try:
        yield
        assert page.run("return document.scrollingElement.scrollWidth") <= 390
        assert page.find("#go").is_displayed()
    finally:
        emulate("Emulation.clearDeviceMetricsOverride", {})
        emulate("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(page: Page, theme: str) -> None:
    with phone(page, theme):
        ground = "return getComputedStyle(document.body).backgroundColor"
        until(lambda: (int(page.run(ground).split("(")[1].split(",")[0]) > 127) == (theme == "light"))
        page.drop("#drop-edit", png(Image.new("RGB", (200, 64))))
        until(lambda: page.count("#mask"))


def test_a_long_prompt_makes_a_phones_page_no_wider(page: Page) -> None:
    with phone(page):
        page.type("#prompt", "a fox and " * 12)
        page.type("#steps", "1")
        page.run("document.querySelector('#go').click()")
        page.finished()


def test_nothing_is_loaded_from_elsewhere_and_no_rule_is_broken(page: Page) -> None:
    names = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert names
    assert all(name.startswith((page.address, "blob:" + page.address)) for name in names)
    said = [entry["message"] for entry in page.driver.get_log("browser")]
    assert not [text for text in said if "Content Security Policy" in text or "Uncaught" in text or "TypeError" in text]
