"""Calibration on a few digits that `choose_calibration` chose, beside as many drawn by chance: SQNR and accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ferryman.converter.quantize.choose import choose_calibration
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, main, progress
from tests.e2e import digits
from tests.support.lowered import lowered, sqnr_db

_DRAWS = 12
_COUNTS = (4, 16)
_FORMS = ("int8", "4bit")
_BETTER = {
    (form, count): Goal(f"{form}: SQNR with {count} chosen digits, over the median of random {count}", ">", 0, "dB")
    for form in _FORMS
    for count in _COUNTS
}


def compare() -> Iterator[Bar | Figure]:
    """Of the digits' CNN, calibrated on a few of 1347 training digits; random sets are of _DRAWS seeds."""
    torch.set_num_threads(1)
    model = digits.train().eval()
    train_images, test_images, _, labels = digits.images()
    with torch.no_grad():
        wanted = model(test_images)

    def measure(form: str, calibration: torch.Tensor) -> tuple[float, float]:
        found = lowered(model, form, [calibration], test_images)(test_images)
        return sqnr_db(wanted, found), float((found.argmax(1) == labels).float().mean())

    order = [image for (image,) in choose_calibration(model, train_images.split(1), max(_COUNTS))]
    for form in _FORMS:
        progress(form)
        whole, right = measure(form, train_images)
        yield figure(f"{form}: SQNR with all {len(train_images)}", [whole], "dB")
        yield figure(f"{form}: accuracy with all {len(train_images)}", [right])
        for count in _COUNTS:
            chosen, chosen_right = measure(form, torch.cat(order[:count]))
            drawn = [
                measure(form, train_images[torch.randperm(len(train_images), generator=generator)[:count]])
                for generator in (torch.Generator().manual_seed(seed) for seed in range(_DRAWS))
            ]
            sqnrs = torch.tensor([one for one, _ in drawn])
            yield _BETTER[form, count].measured([chosen - float(sqnrs.median())])
            yield figure(f"{form}: SQNR, {count} chosen", [chosen], "dB")
            yield figure(f"{form}: SQNR, {count} random", sqnrs.tolist(), "dB")
            yield figure(f"{form}: accuracy, {count} chosen", [chosen_right])
            yield figure(f"{form}: accuracy, {count} random", [one for _, one in drawn])


PARTS = (Part(tuple(_BETTER.values()), compare),)

if __name__ == "__main__":
    main("quant_calibration", PARTS)
