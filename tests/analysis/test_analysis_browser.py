"""The report in a real browser."""

import json
import shutil
from collections.abc import Iterator

import pytest
from realistic_study import INJECTED, write_online_study, write_realistic_study

from analysis import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with chromedriver on this machine"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver")
    folder = tmp_path_factory.mktemp("browser")
    index = write_report(write_realistic_study(folder / "quickstart"))
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1280,900",
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.get(index.as_uri())
        yield driver
    finally:
        driver.quit()


def texts(page, selector: str) -> list[str]:
    return [element.text for element in page.find_elements("css selector", selector)]


def test_the_table_the_pictures_and_the_injected_text_as_a_browser_shows_them(page):
    sent = [json.loads(line["message"])["message"] for line in page.get_log("performance")]
    requests = [
        message["params"]["request"]["url"]
        for message in sent
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == page.current_url  # not those of the browser's own first tab
    ]
    outside = [url for url in requests if not url.startswith("data:")]
    assert outside == [page.current_url], "the page itself and nothing beside it"
    assert page.get_log("browser") == []

    rows = [row.text for row in page.find_elements("css selector", "#efficiency-table tbody tr")]
    assert [row.split()[0] for row in rows] == ["grpo-group", "grpovi-group", "grpo-none", "grpovi-none"]
    assert "3 of 3" in rows[0] and "2 of 2" in rows[3] and "1 excluded" in rows[3]
    assert "grpovi-group is slower than grpo-group." in texts(page, "#verdicts .answer")

    pictures = page.find_elements("css selector", ".pictures svg")
    assert len(pictures) == 8
    for picture in pictures:
        assert picture.size["width"] > 300 and picture.size["height"] > 200

    assert texts(page, "#warnings td.text") == [INJECTED]
    assert page.find_elements("css selector", "script") == []
    assert page.title == "quickstart: efficiency report"


def test_the_first_screen_holds_question_answer_picture_and_cost_and_folds_the_numbers_away(page):
    def bottom(selector: str) -> float:
        rectangles = "[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().bottom)"
        return max(page.execute_script(f"return {rectangles}", selector))

    page.execute_script("window.scrollTo(0, 0)")
    height = page.execute_script("return window.innerHeight")
    assert texts(page, "#verdicts h2") == [
        "Is grpovi-group faster than grpo-group?",
        "Is grpovi-none faster than grpo-none?",
    ]
    for selector in ("#verdicts h2", "#verdicts .answer", "#verdicts svg", "#cost"):
        assert bottom(selector) < height, selector
    sentences = page.find_elements("css selector", ".verdict li")
    assert not any(sentence.is_displayed() for sentence in sentences)
    page.find_element("css selector", ".verdict summary").click()
    assert [sentence.is_displayed() for sentence in sentences].count(True) == len(
        page.find_element("css selector", ".verdict").find_elements("css selector", "li")
    )
    page.find_element("css selector", ".verdict summary").click()


def test_nothing_is_wider_than_a_laptops_window(page):
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    wide = page.execute_script(
        "return [...document.querySelectorAll('#efficiency .scroll')].map(box => box.scrollWidth - box.clientWidth)"
    )
    assert wide == [0]


def test_dark_mode_turns_paper_and_ink_round(page):
    def colours() -> tuple[int, int]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        paper, ink = ([int(part) for part in text.strip("rgb()").split(",")] for text in page.execute_script(script))
        return sum(paper), sum(ink)

    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        paper, ink = colours()
        assert (paper > ink) == (scheme == "light")
        label = page.find_element("css selector", ".pictures svg text")
        assert sum(int(part) for part in label.value_of_css_property("fill").strip("rgb()").split(",")) == ink


def test_the_section_of_online_reward_models_fits_a_laptops_window(page, tmp_path):
    before = page.current_url
    page.get(write_report(write_online_study(tmp_path / "online")).as_uri())
    try:
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        wide = "const box = document.querySelector('#online .scroll'); return box.scrollWidth - box.clientWidth"
        assert page.execute_script(wide) == 0
        rows = texts(page, "#online-table tbody tr")
        assert ["320" in row for row in rows] == [not row.split()[0].endswith("frozen") for row in rows]
        pictures = page.find_elements("css selector", "#online .pictures svg")
        assert len(pictures) == 6
        for picture in pictures:
            assert picture.size["width"] > 300 and picture.size["height"] > 200
        assert page.get_log("browser") == []
    finally:
        page.get(before)
