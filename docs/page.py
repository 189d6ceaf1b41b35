"""The pictures of the page in docs/serving.md, from a running ``arimage serve``; wants selenium and Chromium.

python docs/page.py http://127.0.0.1:8000/
"""

import io
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

PICTURES = Path(__file__).parent / "pictures"
DESK, PHONE = (1280, 800), (390, 844)
GAP = 24


class Browser:
    """A headless browser at the page."""

    def __init__(self, address: str) -> None:
        options = webdriver.ChromeOptions()
        for flag in ("headless=new", "no-sandbox", "hide-scrollbars", "force-color-profile=srgb", "lang=en"):
            options.add_argument(f"--{flag}")
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.show(DESK)
        self.driver.get(address)
        self.until("document.querySelector('.chips')")

    def show(self, size: tuple[int, int], theme: str = "light") -> None:
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        time.sleep(0.6)

    def until(self, condition: str, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not self.driver.execute_script(f"return Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str, times: int = 1) -> None:
        for _ in range(times):
            self.driver.execute_script("document.querySelector(arguments[0]).click()", selector)

    def type(self, selector: str, text: str) -> None:
        self.find(selector).clear()
        self.find(selector).send_keys(text)

    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")


def create(page: Browser) -> list[Image.Image]:
    """Four pictures under way: at a desk, and on a phone."""
    page.type("#prompt", "a fox on a blue background")
    page.click("#more", 3)
    page.click("#go")
    page.until("document.querySelector('.cell:enabled') && document.querySelector('.cell.busy .preview:not([hidden])')")
    desk = page.picture()
    page.show(PHONE)
    phone = page.picture()
    page.show(DESK)
    page.until("document.querySelectorAll('.cell:enabled').length === 4")
    return [desk, phone]


def mask(page: Browser) -> Image.Image:
    """A painted mask and an extended side."""
    page.click(".cell:nth-child(2)")
    page.until("document.querySelector('#use')")
    page.click("#use")
    page.type("#instruction", "Change the background to a yellow background")
    page.show(DESK, "dark")
    painted, side = page.find("#mask"), page.find(".handle.right")
    strokes = ActionChains(page.driver, duration=30).move_to_element_with_offset(painted, -150, -140).click_and_hold()
    for step in ((80, -10), (80, 20), (80, 0), (60, -10)):
        strokes.move_by_offset(*step)
    strokes.release().perform()
    ActionChains(page.driver, duration=30).drag_and_drop_by_offset(side, 50, 0).perform()
    ActionChains(page.driver, duration=30).move_to_element_with_offset(painted, 20, -140).perform()
    time.sleep(0.4)
    return page.picture()


def compare(page: Browser) -> list[Image.Image]:
    """An edited text, before and after, and a picture in the dark: on a phone."""
    page.click("[name=mode][value=create]")
    page.type("#prompt", 'the word "OPEN" in white on a red background')
    page.click("#less", 3)
    page.type("#seed", "1")
    page.click("#go")
    page.until("document.querySelector('.picture .frame > img')?.alt.includes('OPEN')")
    page.show(PHONE, "dark")
    opened = page.picture()
    page.click("#use")
    page.until("document.querySelector('#mask')")
    page.type("#instruction", 'Change the text to "CLOSED"')
    page.click("#go")
    page.until("document.querySelector('.compare .over')?.complete")
    page.show(PHONE)
    return [opened, page.picture()]


def beside(pictures: list[Image.Image]) -> Image.Image:
    """In a row, on grey."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, pictures[0].height + 2 * GAP), "#d5d8d4")
    left = GAP
    for picture in pictures:
        sheet.paste(picture, (left, GAP))
        left += picture.width + GAP
    return sheet


def main(address: str) -> None:
    page = Browser(address)
    try:
        desk, phone = create(page)
        made: dict[str, Callable[[], Image.Image]] = {
            "page-create": lambda: desk,
            "page-edit": lambda: mask(page),
            "page-phone": lambda: beside([phone, *compare(page)]),
        }
        for name, make in made.items():
            make().save(PICTURES / f"{name}.webp", quality=92, method=6)
    finally:
        page.driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
