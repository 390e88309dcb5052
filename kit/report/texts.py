"""Every text of the report: which there are, and how a language's words are read.

words/<language>.json holds a language's words, under the same names in each.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kit.report.section_texts import SectionTexts

FOLDER = Path(__file__).resolve().parent / "words"


@dataclass(frozen=True)
class Texts(SectionTexts):
    """The report's texts in one language; {names} are filled in.

    No text holds a figure: every number in a report comes from a record.
    """

    # the page and the templates
    language: str
    title: str
    subject_random: str
    subject: str
    unknown_model: str
    footer: str
    skip: str
    contents: str
    what_failed: str
    what_lacks: str
    what_else: str
    sort_by: str
    scroll_hint: str
    picture_missing: str
    samples_shown: str
    samples_in_file: str
    good_mark: str
    bad_mark: str
    doubtful_mark: str
    missing_mark: str

    # values and columns
    missing: str
    none: str
    yes: str
    no: str
    not_finite: str
    value: str
    quantity: str
    component: str
    result: str
    state: str
    record: str
    threshold: str
    tensor: str
    shape: str
    note: str
    mode: str
    block: str
    verdict: str
    device: str
    chip: str
    commands: str

    # the verdict
    validated: str
    failed: str
    incomplete: str
    validated_sentence: str
    failed_sentence: str
    incomplete_sentence: str
    proofs_caption: str
    question: str
    answer: str
    stands_on: str
    question_runs: str
    question_fast: str
    question_right: str
    runs: str
    runs_not: str
    runs_partly: str
    runs_elsewhere: str
    not_shown: str
    inference_evidence: str
    benchmark_evidence: str
    accuracy_evidence: str

    # what is lacking, what failed, what else
    no_record_at_all: str
    record_absent: str
    record_unreadable: str
    record_partial: str
    fields_missing: str
    random_weights: str
    emulated_npu: str
    not_an_npu: str
    only_self_check: str
    operators_fell_back: str
    mixed: str
    stale: str
    not_finite_output: str
    accuracy_failed: str
    contradiction: str
    regression_failed: str
    main_mode_failed: str
    unexplained: str
    broken_images: str
    unsupported_percentiles: str
    not_steady: str
    modes_failed: str
    no_commit: str
    dirty_commit: str
    has_warnings: str


@cache
def load(language: str) -> Texts:
    """Return the texts of a language.

    Raises:
        TypeError: where its file lacks a text or has one that no other language has.
    """
    return Texts(**json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8")))
