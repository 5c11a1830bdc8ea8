from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.config import SelectionConfig
from trainer.data.labels import Entry, LabelFormat, Labels, read_labels
from trainer.data.records import Code
from trainer.errors import InputError

SKIP = SelectionConfig(skip_unknown_labels=True)

INBREAST = (
    "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads\n"
    "removed;removed;R;CC;201001;22678622;4;1\n"
    "removed;removed;L;CC;201001;22678646;4;1\n"
    "removed;removed;L;MLO;201001;22678670;1;2\n"
    "removed;removed;R;MLO;200802;20586908;     ;6\n"
)
INBREAST_VARIANT = (
    "\ufeffPatient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads;Mass ;Micros;Findings Notes (in "
    "Portuguese);Lesion Annotation Status\r\n"
    "removed;removed;R;CC;201001;22678622;4;4a;X;;n\u00f3dulo;\r\n"
)

UID = "1.3.6.1.4.1.9590.100.1.2"
MASS = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,mass margins,"
    "assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path\n"
    f"P_00001,3,LEFT,CC,1,mass,IRREGULAR-ARCHITECTURAL_DISTORTION,SPICULATED,4,MALIGNANT,4,"
    f"Mass-Training_P_00001_LEFT_CC/{UID}.42/{UID}.34/000000.dcm,"
    f"Mass-Training_P_00001_LEFT_CC_1/{UID}.10/{UID}.29/000000.dcm,"
    f'"Mass-Training_P_00001_LEFT_CC_1/{UID}.10/{UID}.29/000001.dcm\n"\n'
    f"P_00004,1,RIGHT,MLO,1,mass,ROUND,CIRCUMSCRIBED,4,BENIGN,4,"
    f'"Mass-Test_P_00004_RIGHT_MLO/{UID}.38/{UID}.16/000000.dcm\n",'
    f"Mass-Test_P_00004_RIGHT_MLO_1/{UID}.17/{UID}.65/000000.dcm,"
    f'"Mass-Test_P_00004_RIGHT_MLO_1/{UID}.17/{UID}.65/000001.dcm\n"\n'
    f"P_00004,1,RIGHT,MLO,2,mass,ROUND,CIRCUMSCRIBED,4,BENIGN,4,"
    f"Mass-Test_P_00004_RIGHT_MLO/{UID}.38/{UID}.16/000000.dcm,"
    f"Mass-Test_P_00004_RIGHT_MLO_2/{UID}.17/{UID}.65/000000.dcm,"
    f"Mass-Test_P_00004_RIGHT_MLO_2/{UID}.17/{UID}.65/000001.dcm\n"
)
CALC = (
    "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,calc type,calc distribution,"
    "assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path\n"
    f"P_00005,3,RIGHT,CC,1,calcification,AMORPHOUS,CLUSTERED,3,MALIGNANT,3,Calc-Training_P_00005_RIGHT_CC/{UID}.8/{UID}.2/"
    f"000000.dcm,Calc-Training_P_00005_RIGHT_CC_1/{UID}.3/{UID}.4/000001.dcm,Calc-Training_P_00005_RIGHT_CC_1/{UID}.3/x.dcm\n"
)

STUDY, FIRST, SECOND = (
    "b8d273e8601f348d3664778dae0e7e0b",
    "d8125545210c08e1b1793a5af6458ee2",
    "290c658f4e75a3f83ec78a847414297c",
)
VINDR = (
    "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split\n"
    f"{STUDY},b36517b9cbbcfd286a7ae04f643af97a,{FIRST},L,CC,3518,2800,BI-RADS 2,DENSITY C,training\n"
    f"{STUDY},b36517b9cbbcfd286a7ae04f643af97a,{SECOND},L,MLO,3518,2800,BI-RADS 2,DENSITY C,training\n"
    "8269f5971eaca3e5d3772d1796e6bd7a,d931832a0815df082c085b6e09d20aac,dd9ce3288c0773e006a294188aadba8e,R,MLO,3518,2800,"
    "BI-RADS 1,DENSITY A,test\n"
)
RSNA = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
    "difficult_negative_case\n"
    "2,10006,462822612,L,CC,61.0,0,0,0,,0,,29,False\n"
    "1,10025,562340703,L,CC,75.0,0,0,0,,0,B,21,False\n"
    "1,10025,288394860,R,AT,75.0,0,0,0,0.0,0,C,21,False\n"
)
MIAS = (
    "INFORMATION:\n\nThis file lists the films in the MIAS database, mdb001 to mdb322.\n\n"
    "<pre>REFNUM BG CLASS SEVERITY X Y RADIUS\n"
    "mdb001 G CIRC B 535 425 197\n"
    "mdb002 G CIRC B 522 280 69\n"
    "mdb003 D NORM \n"
    "mdb005 F CIRC B 477 133 30\n"
    "mdb005 F CIRC B 500 168 26\n"
    "mdb059 F CIRC B\n"
    "mdb216 D CALC M *NOTE 3*\n"
    "</pre>\n"
)
SPLIT = SelectionConfig(published_split=True)
PATHS = "image,label,patient,view,laterality,split,remark\nleft/a.png,2,p1,cc,L,train,-\nb.dcm,3,,,,,-\n"


def read(folder: Path, content: str, selection: SelectionConfig | None = None) -> Labels:
    """The labels of a file with *content*."""
    path = folder / "labels.csv"
    path.write_text(content, newline="")
    return read_labels(path, selection or SelectionConfig())


def grades(labels: Labels) -> dict[str, str]:
    """What the classes of the images that are used are called, by key."""
    return {key: labels.class_names[entry.label] for key, entry in labels.entries.items() if entry.label is not None}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("AccessionNumber,Classification,ClassificationDate\n0000173,2,2020-01-01\n", "archive"),
        (" accessionnumber ;CLASSIFICATION\n0000173;2\n", "archive"),
        (INBREAST, "inbreast"),
        (INBREAST_VARIANT, "inbreast"),
        (MASS, "cbis-ddsm"),
        (CALC, "cbis-ddsm"),
        (VINDR, "vindr"),
        ("study_id,image_id,breast_density\na,b,DENSITY A\n", "vindr"),
        (RSNA, "rsna"),
        (MIAS, "mini-mias"),
        ("mdb001 G CIRC B 535 425 197\r\nmdb002 G CIRC B 522 280 69\r\n", "mini-mias"),
        (PATHS, "csv"),
        ("Label;Image\n2;a.png\n", "csv"),
    ],
)
def test_formats_are_recognised(tmp_path: Path, content: str, wanted: Any) -> None:
    """A file is told by its columns, and reads the same when its format is named."""
    labels = read(tmp_path, content)
    assert labels.format == LabelFormat(wanted)
    assert read(tmp_path, content, SelectionConfig(format=wanted)) == labels


def test_inbreast(tmp_path: Path) -> None:
    """INbreast's grade is the ACR's, its key the number of the file, and its patient stands in the file's name only."""
    labels = read(tmp_path, INBREAST)
    assert grades(labels) == {"22678622": "4", "22678646": "4", "22678670": "1"}
    assert labels.entries["22678622"] == Entry(2, 1, None, "", None, "CC", "R", None)
    assert labels.entries["20586908"].code == Code.NO_LABEL
    name = "AllDICOMs/22678622_61b13c59bcba149e_MG_R_CC_ANON.dcm"
    assert labels.key_of(name) == "22678622"
    assert labels.patient_of(name, "22678622") == "61b13c59bcba149e"
    assert labels.patient_of("22678622.dcm", "22678622") is None
    for written in ("22678622.dcm;", "22678622.0;"):
        assert labels.entries.keys() == read(tmp_path, INBREAST.replace("22678622;", written)).entries.keys()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("22678622.dcm", "22678622"),
        ("x/y/22678622.JPG", "22678622"),
        ("22678622.png", "22678622"),
        ("22678622.dicom", "22678622"),
        ("22678622.jpeg", "22678622"),
        ("22678622.pgm", "22678622"),
        ("22678622.xml", None),
        ("22678622.roi", None),
        ("22678622", None),
        ("22678622/x.dcm", None),
        ("122678622.dcm", None),
        ("22678622_mask.png", None),
        ("22678623_61b13c59bcba149e_MG_R_CC_ANON.dcm", None),
    ],
)
def test_inbreast_names(tmp_path: Path, name: str, key: str | None) -> None:
    """Images have a label under every name that they are passed on with, annotations and other numbers have none."""
    assert read(tmp_path, INBREAST).key_of(name) == key


def test_inbreast_variant(tmp_path: Path) -> None:
    """Further columns, a byte order mark and Windows' line ends make no difference."""
    assert grades(read(tmp_path, INBREAST_VARIANT)) == {"22678622": "4"}


def test_cbis_ddsm(tmp_path: Path) -> None:
    """Each image is there once, however many abnormalities it has, with the patient, the side and the publisher's split."""
    labels = read(tmp_path, MASS, SPLIT)
    assert grades(labels) == {"Mass-Training_P_00001_LEFT_CC": "3", "Mass-Test_P_00004_RIGHT_MLO": "1"}
    assert labels.entries["Mass-Training_P_00001_LEFT_CC"] == Entry(2, 1, None, "", "P_00001", "CC", "L", "train")
    assert labels.entries["Mass-Test_P_00004_RIGHT_MLO"] == Entry(4, 0, None, "", "P_00004", "MLO", "R", "test")
    labels = read(tmp_path, CALC, SPLIT)
    assert labels.entries["Calc-Training_P_00005_RIGHT_CC"] == Entry(2, 0, None, "", "P_00005", "CC", "R", "train")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"Mass-Training_P_00001_LEFT_CC/{UID}.42/{UID}.34/000000.dcm", True),
        (
            "CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/07-20-2016-DDSM-74994/1.000000-full mammogram images-24515/1-1.dcm",
            True,
        ),
        ("Mass-Training_P_00001_LEFT_CC/image.png", True),
        (
            "CBIS-DDSM/Mass-Training_P_00001_LEFT_CC_1/07-21-2016-DDSM-39106/1.000000-cropped images-05400/1-1.dcm",
            False,
        ),
        ("Mass-Training_P_00001_LEFT_CC", False),
        ("Mass-Training_P_00001_LEFT_MLO/image.dcm", False),
    ],
)
def test_cbis_ddsm_folders(tmp_path: Path, path: str, found: bool) -> None:
    """An image is told by its case's folder, wherever the download has put it; crops and masks lie in folders of other names."""
    assert read(tmp_path, MASS).key_of(path) == ("Mass-Training_P_00001_LEFT_CC" if found else None)


def test_cbis_ddsm_has_no_grade_0(tmp_path: Path) -> None:
    """The scale of a public data set is known: a 0 in it is a mistake of that row, not another base of the file."""
    content = MASS.replace("P_00001,3", "P_00001,0")
    with pytest.raises(InputError, match="line 2, breast_density: '0', expected one of 1, 2, 3, 4"):
        read(tmp_path, content)
    labels = read(tmp_path, content, SKIP)
    assert grades(labels) == {"Mass-Test_P_00004_RIGHT_MLO": "1"}
    assert labels.entries["Mass-Training_P_00001_LEFT_CC"].code == Code.UNKNOWN_LABEL


def test_a_grade_beside_an_empty_cell(tmp_path: Path) -> None:
    """A grade that only one abnormality's row tells is the image's grade, in whatever order they come."""
    for content in (
        MASS.replace("P_00004,1,RIGHT,MLO,1", "P_00004,,RIGHT,MLO,1"),
        MASS.replace("P_00004,1,RIGHT,MLO,2", "P_00004,,RIGHT,MLO,2"),
    ):
        assert grades(read(tmp_path, content)) == grades(read(tmp_path, MASS))


def test_vindr(tmp_path: Path) -> None:
    """VinDr's images are named by study and image, whatever has become of their suffix, and its patients are studies."""
    labels = read(tmp_path, VINDR, SPLIT)
    assert labels.class_names == ("DENSITY A", "DENSITY C")
    assert labels.entries[f"{STUDY}/{FIRST}"] == Entry(2, 1, None, "", STUDY, "CC", "L", "train")
    assert [entry.split for entry in labels.entries.values()] == ["train", "train", "test"]
    for path in (f"images/{STUDY}/{SECOND}.dicom", f"{STUDY}/{SECOND}.png", f"{STUDY}/{SECOND}"):
        key = labels.key_of(path)
        assert key == f"{STUDY}/{SECOND}"
        assert labels.patient_of(path, key) == STUDY
    assert labels.key_of(f"{SECOND}.dicom") is None
    assert labels.key_of(f"{STUDY}/{SECOND}/1.dicom") is None


def test_rsna(tmp_path: Path) -> None:
    """RSNA's images are named by patient and image, and those of the site that gave no density have no label."""
    labels = read(tmp_path, RSNA)
    assert grades(labels) == {"10025/562340703": "B", "10025/288394860": "C"}
    assert labels.entries["10006/462822612"] == Entry(
        2, None, Code.NO_LABEL, "line 2, density: empty", "10006", "CC", "L", None
    )
    assert labels.entries["10025/288394860"].view == "AT"
    assert labels.key_of("train_images/10025/562340703.dcm") == "10025/562340703"
    assert labels.key_of("train_images/10025_562340703.png") is None


def test_mini_mias(tmp_path: Path) -> None:
    """Each film is there once, its patient is its pair, and prose and markup around the list are passed over."""
    labels = read(tmp_path, MIAS)
    assert labels.class_names == ("F", "G", "D")
    assert grades(labels) == {"mdb001": "G", "mdb002": "G", "mdb003": "D", "mdb005": "F", "mdb059": "F", "mdb216": "D"}
    assert labels.entries["mdb001"] == Entry(6, 1, None, "", "mdb001-002", "MLO", "L", None)
    assert labels.entries["mdb002"] == Entry(7, 1, None, "", "mdb001-002", "MLO", "R", None)
    assert labels.entries["mdb216"].patient == "mdb215-216"
    assert read(tmp_path, MIAS.replace("mdb001 ", "mdb001lm ").replace("mdb002 ", "MDB002rl\t")) == labels


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("mdb001.pgm", "mdb001"),
        ("all-mias/MDB001.PNG", "mdb001"),
        ("mdb001lm.dcm", "mdb001"),
        ("mdb001", "mdb001"),
        ("mdb0011.pgm", None),
        ("mdb001_mask.png", None),
        ("mdb004.pgm", None),
        ("mdb001/1.pgm", None),
    ],
)
def test_mini_mias_names(tmp_path: Path, path: str, key: str | None) -> None:
    """Films are told by their reference, with or without the letters for side and size."""
    assert read(tmp_path, MIAS).key_of(path) == key


@pytest.mark.parametrize(
    "prose",
    [
        "mdb001 and mdb002 are the films of one patient",
        "<p>mdb001, mdb002 and others",
        "mdb001 to mdb322",
        "mdb001 - the first film",
    ],
)
def test_mini_mias_prose(tmp_path: Path, prose: str) -> None:
    """A sentence may begin with a reference, and is no row for that."""
    content = MIAS.replace("INFORMATION:", prose)
    assert read(tmp_path, content) == read(tmp_path, MIAS)
    assert read(tmp_path, content, SKIP) == read(tmp_path, MIAS)


def test_mini_mias_pairs_are_those_of_the_films(tmp_path: Path, real_data: Path) -> None:
    """The pairs of the real set, which was put into folders by patient, are the patients that the numbers give."""
    folders = {path.stem: path.parent.name for path in (real_data / "mini_mias" / "archive").glob("*/*.dcm")}
    labels = read(tmp_path, "".join(f"{name} G NORM\n" for name in folders))
    pairs = {(folder, labels.entries[name].patient) for name, folder in folders.items()}
    assert len(pairs) == len(set(folders.values())) == len({patient for _, patient in pairs})


def test_csv(tmp_path: Path) -> None:
    """A plain table names images by their path, and tells of them what it has columns for."""
    labels = read(tmp_path, PATHS, SPLIT)
    assert labels.entries["left/a.png"] == Entry(2, 0, None, "", "p1", "CC", "L", "train")
    assert labels.entries["b.dcm"] == Entry(3, 1, None, "", None, None, None, None)
    assert labels.key_of("left/a.png") == "left/a.png"
    assert labels.key_of("a.png") is None
    assert labels.patient_of("left/a.png", "left/a.png") == "p1"
    assert labels.patient_of("b.dcm", "b.dcm") is None


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("./a/b.png", "a/b.png"),
        ("a//b.png", "a/b.png"),
        ("a\\b.png", "a/b.png"),
        (".\\a\\.\\b.png", "a/b.png"),
        ("a/../a/b.png", "a/b.png"),
        ("../b.png", None),
        ("a/../../b.png", None),
        ("a\\..\\..\\b.png", None),
        ("..", None),
        ("/etc/passwd", None),
        ("//server/share/b.png", None),
        ("C:\\images\\b.png", None),
        ("c:/images/b.png", None),
    ],
)
def test_csv_paths(tmp_path: Path, written: str, key: str | None) -> None:
    """Paths are compared in one spelling, and one that leads out of the root is no image's."""
    labels = read(tmp_path, f"image,label\n{written},1\n")
    if key is None:
        assert labels.entries[written].code == Code.OUTSIDE_ROOT
        assert labels.entries[written].label is None
    else:
        assert grades(labels) == {key: "1"}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        *[(word, "train") for word in ("train", "Training", "trn", " TRAIN ")],
        *[(word, "validation") for word in ("val", "valid", "validation", "Dev")],
        *[(word, "test") for word in ("test", "TESTING")],
        ("", None),
    ],
)
def test_splits(tmp_path: Path, split: str, expected: str | None) -> None:
    """A split has one name in the program, whatever its publisher calls it."""
    assert read(tmp_path, f"image,label,split\na.png,1,{split}\n", SPLIT).entries["a.png"].split == expected


@pytest.mark.parametrize(
    "content",
    [
        "image,label,split\na.png,1,A/B\nb.png,2,0\nc.png,2,1\n",
        "image,label,split\na.png,1,train\na.png,1,test\n",
        "image,label,split,split\na.png,1,train,x\n",
        ",image,label,split,\n0,a.png,1,0,x\n1,b.png,2\n",
        "AccessionNumber,Classification,split\na,1,train\n",
        VINDR.replace(",test", ",holdout"),
        MASS,
    ],
)
def test_a_split_that_nobody_asks_for_is_not_read(tmp_path: Path, content: str) -> None:
    """A split column may mean something else altogether: unless it is asked for, it can say whatever it likes."""
    assert {entry.split for entry in read(tmp_path, content).entries.values()} == {None}


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        *[(word, "L") for word in ("L", "left", "Left breast", "LEFT BREAST", "left\u00a0breast")],
        *[(word, "R") for word in ("r", "RIGHT", "right breast")],
        *[(word, None) for word in ("", "both", "B", "leftmost", "breast")],
    ],
)
def test_sides(tmp_path: Path, side: str, expected: str | None) -> None:
    """The first word tells the side."""
    assert read(tmp_path, f"image,label,laterality\na.png,1,{side}\n").entries["a.png"].laterality == expected


def test_archive(tmp_path: Path) -> None:
    """The key is the first folder below the root, and patients and splits are read where an archive's file has them."""
    content = "AccessionNumber,Classification,Patient,Split\n0000173,2,p1,dev\n"
    labels = read(tmp_path, content, SPLIT)
    assert labels.entries["0000173"] == Entry(2, 0, None, "", "p1", None, None, "validation")
    assert labels.key_of("0000173/L_CC.dcm") == "0000173"
    assert labels.key_of("0000173/deep/down/x") == "0000173"
    assert labels.key_of("173/L_CC.dcm") is None
    assert labels.key_of("x/0000173/L_CC.dcm") is None


@pytest.mark.parametrize(
    ("content", "wanted", "said"),
    [
        ("a,b\n1,2\n", "auto", ["line 1", "a, b", "AccessionNumber", "File Name", "breast_density", "mdb001", "image, label"]),
        ("\n\nfile name;grade\nx;1\n", "auto", ["line 3", "file name, grade"]),
        (INBREAST.replace("ACR", "Density"), "inbreast", ["line 1", "no column ACR", "Bi-Rads"]),
        (INBREAST.replace("22678646;4", "22678646;5"), "auto", ["line 3", "ACR", "'5'", "1, 2, 3, 4"]),
        (INBREAST.replace("22678646", ""), "auto", ["line 3", "File Name", "empty"]),
        (MASS.replace("breast_density", "density"), "cbis-ddsm", ["no column breast_density"]),
        (MASS.replace("P_00004,1,RIGHT,MLO,2", "P_00004,2,RIGHT,MLO,2"), "auto", ["line 7", "density: '2'", "line 4", "'1'"]),
        (MASS.replace("P_00004,1,RIGHT,MLO,2", "P_00005,1,RIGHT,MLO,2"), "auto", ["line 7", "patient", "line 4"]),
        (CALC.replace(",3,RIGHT", ",x,RIGHT"), "auto", ["line 2", "breast density", "'x'"]),
        (VINDR.replace("DENSITY A", "DENSITY E"), "auto", ["line 4", "breast_density", "'DENSITY E'", "A, B, C, D"]),
        (RSNA.replace("density", "densities"), "rsna", ["no column density"]),
        (RSNA.replace(",B,", ",2,"), "auto", ["line 3", "density", "'2'", "A, B, C, D"]),
        (MIAS.replace("mdb003 D", "mdb003 E"), "auto", ["line 8", "tissue", "'E'", "F, G, D"]),
        (MIAS.replace("mdb003 D NORM ", "mdb003 a film of"), "auto", ["line 8", "tissue", "'a'"]),
        (MIAS.replace("mdb003 D", "mdb003 dense"), "auto", ["line 8", "tissue", "'dense'"]),
        (MIAS.replace("mdb003 D NORM ", "mdb003 dense"), "auto", ["line 8", "tissue", "'dense'"]),
        (MIAS.replace("mdb003 D NORM ", "mdb003"), "auto", ["line 8", "1 field"]),
        (MIAS.replace("mdb005 F CIRC B 500", "mdb005 G CIRC B 500"), "auto", ["line 10", "'G'", "line 9", "'F'"]),
        (PATHS, "vindr", ["no column study_id", "remark"]),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, content: str, wanted: Any, said: list[str]) -> None:
    """One line names the file, the row, the column and what was expected there, and never a patient."""
    with pytest.raises(InputError) as error:
        read(tmp_path, content, SelectionConfig(format=wanted))
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "expected" in message
    assert all(part in message for part in [str(tmp_path / "labels.csv"), *said])
    assert "P_0000" not in message
    assert "10025" not in message


def test_wrong_split(tmp_path: Path) -> None:
    """A split that is asked for must have names that are known."""
    with pytest.raises(InputError, match="line 4, split: 'holdout', expected train, validation or test"):
        read(tmp_path, VINDR.replace(",test", ",holdout"), SPLIT)


def test_no_middle_of_three_tissues(tmp_path: Path) -> None:
    """Mini-MIAS cannot be made binary: nobody has said on which side the middle one is."""
    with pytest.raises(InputError, match="F, G, D"):
        read(tmp_path, MIAS, SelectionConfig(classes="binary"))
