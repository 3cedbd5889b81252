import numpy as np
from PIL import Image

from vimi_diffusers.evaluation.sheet import GAP, LABEL_WIDTH, SheetRow, write_sheet


def solid(colour, count=1, size=16):
    return np.full((count, size, size, 3), colour, dtype=np.uint8)


def test_cells_stand_in_rows_and_columns_and_stay_crisp(tmp_path):
    checks = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    checks = np.stack([checks] * 3, axis=-1)[None]
    rows = [
        SheetRow("a red thing", "A red thing stays.", [solid((255, 0, 0), 2), solid((0, 0, 255)) / 255.0]),
        SheetRow("checks", "Checks stay.", [checks, solid((0, 128, 0))]),
    ]
    path = tmp_path / "sheet.png"
    write_sheet(path, "Title", ("Images", "Frames"), rows)
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red = (np.abs(sheet - (255, 0, 0)).sum(-1) < 8).nonzero()
    assert len(red[0]) == 2 * 128 * 128 and red[1].min() == GAP + LABEL_WIDTH
    blue, green = ((np.abs(sheet - colour).sum(-1) < 8).nonzero() for colour in ((0, 0, 255), (0, 128, 0)))
    assert len(blue[0]) == len(green[0]) == 128 * 128 and blue[1].min() == green[1].min() > red[1].max()
    assert green[0].min() - blue[0].min() == 128 + 2 * GAP
    cell = sheet[green[0].min() :, GAP + LABEL_WIDTH :][:128, :128, 0]
    assert np.array_equal(cell > 127, np.kron(checks[0, :, :, 0] > 0, np.ones((8, 8), bool)))
    assert sheet[red[0].min() : red[0].min() + 20, : LABEL_WIDTH - 16].min() < 128  # the label
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
