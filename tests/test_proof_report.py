"""docs/PROOF.md, which holds what each proof found when it was run last."""

from proof.report import with_section
from proof.section import Section

ORDER = ("races", "model", "crashes")


def section(title: str, *, held: bool = True) -> str:
    return Section(title=title, tried="It was tried.", head=("what",), rows=[("all",)], held=held).markdown("today")


def test_a_section_takes_the_place_of_the_one_before() -> None:
    """What another run of the same proof found is gone, and the other proofs' sections stay."""
    report = with_section("", "model", section("The old one"), ORDER)
    report = with_section(report, "races", section("Races"), ORDER)
    report = with_section(report, "model", section("The new one"), ORDER)
    assert "The old one" not in report
    assert report.count("## ") == 2


def test_sections_stand_in_the_order_of_the_proofs() -> None:
    """However they were run."""
    report = ""
    for name in ("crashes", "races", "model"):
        report = with_section(report, name, section(name), ORDER)
    assert [line for line in report.splitlines() if line.startswith("## ")] == ["## races", "## model", "## crashes"]


def test_a_report_is_written_the_same_twice() -> None:
    """A section that did not change leaves no difference."""
    report = with_section(with_section("", "races", section("Races"), ORDER), "model", section("Model"), ORDER)
    assert with_section(report, "races", section("Races"), ORDER) == report


def test_the_section_of_a_proof_that_is_no_more_goes() -> None:
    """The report speaks of what can be run again."""
    report = with_section("", "races", section("Races"), ORDER)
    assert "Races" not in with_section(report, "model", section("Model"), ("model",))


def test_what_did_not_hold_says_so() -> None:
    """A report can fail."""
    assert "Did not hold" in section("Races", held=False)
    assert "Did not hold" not in section("Races")
