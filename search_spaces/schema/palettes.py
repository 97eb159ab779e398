"""Colours of published sets' masks, by the names that `mask_colors` takes."""

from __future__ import annotations

from typing import NamedTuple

RGB = tuple[int, int, int]


class Palette(NamedTuple):
    """Class -> its colours, and the colours that are excluded from losses and metrics."""

    colors: dict[str, tuple[RGB, ...]]
    ignored: tuple[RGB, ...]


def _bits(index: int) -> RGB:
    """The colour of a class in VOC's masks: the bits of its index in turn to red, green and blue, highest first."""
    red, green, blue = (sum(((index >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3))
    return red, green, blue


VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# label_colors.txt of CamVid: its 31 classes; Void is ignored.
CAMVID = {
    "Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bicyclist": (0, 128, 192), "Bridge": (0, 128, 64),
    "Building": (128, 0, 0), "Car": (64, 0, 128), "CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128), "Fence": (64, 64, 128), "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64), "Misc_Text": (128, 128, 64), "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64), "ParkingBlock": (64, 192, 128), "Pedestrian": (64, 64, 0), "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192), "SignSymbol": (192, 128, 128), "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192), "TrafficCone": (0, 0, 64), "TrafficLight": (0, 64, 64), "Train": (192, 64, 128),
    "Tree": (128, 128, 0), "Truck_Bus": (192, 128, 192), "Tunnel": (64, 0, 64), "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}  # fmt: skip

# gtFine's *_color.png: the 19 evaluated classes. The other colours are of classes that are not evaluated.
CITYSCAPES = {
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30), "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35), "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32),
}  # fmt: skip
CITYSCAPES_IGNORED = (
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100),
    (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip

PALETTES = {
    "camvid": Palette({name: (color,) for name, color in CAMVID.items()}, ((0, 0, 0),)),
    "voc": Palette({name: (_bits(i),) for i, name in enumerate(VOC_CLASSES)}, (_bits(255),)),
    "cityscapes": Palette({name: (color,) for name, color in CITYSCAPES.items()}, CITYSCAPES_IGNORED),
}
