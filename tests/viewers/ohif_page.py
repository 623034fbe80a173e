"""OHIF in a headless Chromium: what is listed, what is opened, and which pixels an overlay changes on a slice."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import numpy as np
from browsers import wait_for
from PIL import Image

# The viewport that shows the study; its other actors, from the second on, are overlays.
_VIEW = "const v = cornerstone.getEnabledElements()[0].viewport;"


class Page:
    """A study opened in OHIF."""

    def __init__(self, browser: Any, address: str, study: str) -> None:
        self.browser = browser
        browser.get(f"{address}/viewer?StudyInstanceUIDs={study}")
        wait_for("the study", lambda: browser.execute_script(f"{_VIEW} return v.getImageIds().length"))
        # Tours are shown to who was not here before.
        for each in browser.find_elements("xpath", "//*[text()='Skip all']"):
            each.click()

    def listed(self) -> dict[str, bool]:
        """The modality of each series of the study, and whether this OHIF can open it."""
        rows = self.browser.execute_script(
            "return services.displaySetService.getActiveDisplaySets().map(d => [d.Modality, !d.unsupported])"
        )
        return {modality: bool(can) for modality, can in rows}

    def open(self, words: str) -> None:
        """Double-click the series with these words in its description."""
        from selenium.webdriver import ActionChains

        row = self.browser.find_element("xpath", f"//*[contains(text(), '{words}')]")
        ActionChains(self.browser).double_click(row).perform()

    def click(self, words: str) -> None:
        wait_for(words, lambda: self.browser.find_elements("xpath", f"//button[text()='{words}']"))[0].click()

    def wait_for_overlay(self, kind: str) -> None:
        """Return once the view is of this kind ('stack', 'orthographic') and something lies over its image."""
        script = f"{_VIEW} return v.type === arguments[0] && v.getActors().length > 1"
        wait_for("an overlay", lambda: self.browser.execute_script(script, kind))
        # Slices still arrive; what is drawn before they are there is black.
        time.sleep(2)

    def wait_for_images(self, number: int) -> None:
        """Return once the view shows images of the series of this number."""
        script = f"{_VIEW} return cornerstone.metaData.get('generalSeriesModule', v.getCurrentImageId()).seriesNumber"
        wait_for("the series", lambda: self.browser.execute_script(script) == number)
        time.sleep(2)

    def go_to(self, position_lps: np.ndarray) -> None:
        """Show the slice whose first pixel lies here."""
        places = self.browser.execute_script(
            f"{_VIEW} return v.getImageIds().map(i => cornerstone.metaData.get('imagePlaneModule', i).imagePositionPatient)"
        )
        for index in np.argsort(np.linalg.norm(np.array(places) - position_lps, axis=1)).tolist():
            # A volume may be counted from its other end.
            for n in (index, len(places) - 1 - index):
                self.browser.execute_script(
                    f"{_VIEW} cornerstone.utilities.jumpToSlice(v.element, {{imageIndex: arguments[0]}})", n
                )
                time.sleep(1)
                shown = self.browser.execute_script(
                    f"{_VIEW} return cornerstone.metaData.get('imagePlaneModule', v.getCurrentImageId()).imagePositionPatient"
                )
                if np.linalg.norm(np.array(shown) - position_lps) < 0.01:
                    return
            break
        raise AssertionError(f"no slice of OHIF lies at {position_lps}")

    def pixels(self) -> np.ndarray:
        """What is drawn now, 0 to 255, indexed row, column, colour."""
        url = self.browser.execute_script(f"{_VIEW} v.render(); return v.canvas.toDataURL('image/png')")
        time.sleep(0.5)
        url = self.browser.execute_script(f"{_VIEW} return v.canvas.toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"), float)

    def with_and_without_overlay(self) -> tuple[np.ndarray, np.ndarray]:
        """What is drawn with the overlays, and without them."""
        show = f"{_VIEW} v.getActors().slice(1).forEach(a => a.actor.setVisibility(arguments[0])); v.render()"
        over = self.pixels()
        self.browser.execute_script(show, False)
        plain = self.pixels()
        self.browser.execute_script(show, True)
        return over, plain
