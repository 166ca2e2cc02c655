"""Whatever would end a run later is found before its first step, and before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.corpus import Corpus, build_corpus
from armillary.goodput import read_events
from armillary.model import TokenError
from armillary.recipe import (
    ArmillaryError,
    CorpusSpec,
    DomainSpec,
    Layout,
    LengthPhase,
    MixturePhase,
    TokenizerSpec,
    UsageError,
    Validation,
)
from armillary.train import Assignment, DivergedError, InterruptedRunError, check_run, train_fleet, train_run
from armillary.train.checkpoint import checkpoint_steps
from armillary.train.hooks import validate as validation


@pytest.fixture(scope="module")
def corpus(tiny_texts, tmp_path_factory):
    """Two domains, and ``note``, which is examined only and has a few tokens."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "note.txt").write_text("\n".join(f"sun and moon {i}" for i in range(12)) + "\n")
    sources = {"sky": tiny_texts["sky"], "sea": tiny_texts["sea"], "note": folder / "note.txt"}
    spec = CorpusSpec(
        domains={name: DomainSpec(source=str(path), train=name != "note") for name, path in sources.items()},
        tokenizer=TokenizerSpec(vocab_size=300),
        validation_share=0.1,
        validation_chars=1000,
        max_document_chars=200,
    )
    return build_corpus(spec, folder / "corpus", workers=1)


@pytest.fixture
def spec(make_spec, corpus):
    shape = make_spec().model.model_copy(update={"vocab_size": corpus.vocab_size})
    weights = {"sky": 0.5, "sea": 0.5}
    return make_spec(corpus=corpus.hash, model=shape, mixture=(MixturePhase(start_step=0, weights=weights),))


def refused(spec, corpus, folder, *said):
    """Refused by the check and by the trainer, before there is a folder."""
    with pytest.raises(UsageError) as caught:
        train_run(spec, corpus, folder)
    assert not folder.exists()
    for text in said:
        assert text in str(caught.value)
    with pytest.raises(UsageError):
        check_run(spec, corpus)
    if not spec.lengths:  # a stack takes no others
        [(_, outcome)] = train_fleet([Assignment(spec, folder)], corpus, 1)
        assert isinstance(outcome, UsageError) and not folder.exists()


def tokens(corpus, domain):
    return corpus.manifest.domains[domain].validation_tokens


def test_a_validation_domain_shorter_than_a_window(spec, corpus, tmp_path):
    length = tokens(corpus, "note")
    fits = spec.model_copy(update={"context_length": length - 1})
    check_run(fits, corpus)
    long = spec.model_copy(update={"context_length": length})
    refused(
        long, corpus, tmp_path / "run", "domain 'note'", f"{length} validation tokens",
        f"context_length + 1 = {length + 1}", "give it more text",
    )  # fmt: skip


def test_a_domain_that_is_too_short_for_a_later_length_only(spec, corpus, tmp_path):
    length = 2 ** (tokens(corpus, "note")).bit_length()
    phase = LengthPhase(start_step=8, context_length=length, batch_sequences=1)
    later = spec.model_copy(update={"lengths": (phase,)})
    refused(
        later,
        corpus,
        tmp_path / "run",
        "validation from step 8 on: domain 'note'",
        f"context_length + 1 = {length + 1}",
    )


@pytest.mark.parametrize(("every", "fails"), [(5, True), (2, True), (11, False), (None, False)])
def test_a_length_counts_where_it_is_validated(every, fails, spec, corpus):
    """The longest length is over before the first validation, or there is one in it."""
    length = 2 ** (tokens(corpus, "note")).bit_length()
    run = spec.model_copy(
        update={
            "context_length": length,
            "batch_sequences": 1,
            "lengths": (LengthPhase(start_step=6, context_length=8, batch_sequences=4),),
            "validation": Validation(every=every, windows=4),
        }
    )
    if fails:
        with pytest.raises(UsageError, match="domain 'note'"):
            check_run(run, corpus)
    else:
        check_run(run, corpus)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": "0123456789abcdef"}, "belongs to corpus 0123456789abcdef"),
        ({"steps": 3}, "do not fit into 3 steps"),
        ({"accumulation": 3}, "must be a multiple of accumulation"),
        ({"context_length": 100_000}, "training tokens are fewer than one window"),
        ({"mixture": (MixturePhase(start_step=0, weights={"sky": 0.5, "see": 0.5}),)}, "nearest: 'sea'"),
        ({"mixture": (MixturePhase(start_step=0, weights={"sky": 0.5, "note": 0.5}),)}, "is only examined"),
    ],
)
def test_what_does_not_fit_corpus_or_schedule(changes, said, spec, corpus, tmp_path):
    """Also in a specification that was copied from another one, which nothing has checked."""
    refused(spec.model_copy(update=changes), corpus, tmp_path / "run", said)


def test_a_vocabulary_below_the_corpuss_is_refused_and_a_padded_one_is_not(spec, corpus, tmp_path):
    def of(size):
        return spec.model_copy(update={"model": spec.model.model_copy(update={"vocab_size": size})})

    check_run(of(384), corpus)
    refused(of(corpus.vocab_size - 1), corpus, tmp_path / "run", f"is below the corpus's {corpus.vocab_size}")


def test_all_that_is_wrong_is_said_at_once(spec, corpus):
    wrong = spec.model_copy(update={"context_length": 1000, "batch_sequences": 6})
    with pytest.raises(UsageError) as caught:
        check_run(wrong, corpus, Layout(dp_shard=4))
    said = str(caught.value)
    assert "validation: domain 'note'" in said and "batch_sequences (6) must be a multiple of" in said


def test_a_checkpoint_that_is_due_is_written_before_a_validation_that_fails(
    make_spec, tiny_corpus, tmp_path, undisturbed, outcome, monkeypatch
):
    spec, folder = make_spec(validation=Validation(every=4, windows=4)), tmp_path / "run"

    def fails(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(validation, "validate", fails)
        with pytest.raises(ArmillaryError, match=r"hook Validate after step 4: OSError: .*Input/output"):
            train_run(spec, tiny_corpus, folder, keep=(4,))
    assert checkpoint_steps(folder / "checkpoints") == [4]
    steps = []
    train_run(spec, tiny_corpus, folder, progress=steps.append)
    assert steps[0] == 5
    assert outcome(folder) == undisturbed(spec)


@pytest.mark.parametrize("step", [8, 12])
def test_a_stop_leaves_the_validation_of_its_step_to_the_next_start(
    step, make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    """Also across a switch of lengths, where the next start has taken no step with the positions of the last one."""
    spec = make_spec(
        steps=14,
        validation=Validation(every=4, windows=4),
        lengths=(LengthPhase(start_step=8, context_length=32, batch_sequences=2, rope_theta=500.0),),
    )
    steps = []
    with pytest.raises(InterruptedRunError):
        train_run(spec, tiny_corpus, tmp_path, progress=steps.append, stop=lambda: len(steps) == step)
    train_run(spec, tiny_corpus, tmp_path)
    assert outcome(tmp_path) == undisturbed(spec)
    validated = [event.step for event in read_events(tmp_path / "events.jsonl") if event.kind == "validation"]
    assert validated == [4, 8, 12, 14]


def foreign(corpus, domain, token):
    """The corpus with one token in the text of a domain that the vocabulary does not have."""

    class Changed(Corpus):
        def train_tokens(self, name):
            found = super().train_tokens(name)
            if name == domain:
                found = np.array(found, dtype=np.int64)
                found[::50] = token
            return found

    return Changed(corpus.path, corpus.manifest)


@pytest.mark.parametrize("token", [300, 65535, -100, -1])
def test_a_token_outside_of_the_vocabulary_ends_the_run(token, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    """One device and a stack; in the stack the other run is not touched."""
    sea = make_spec(mixture=(MixturePhase(start_step=0, weights={"sea": 1.0}),))
    sky = make_spec(mixture=(MixturePhase(start_step=0, weights={"sky": 1.0}),))
    corpus = foreign(tiny_corpus, "sea", token)
    with pytest.raises(TokenError, match=f"token {token} is outside the vocabulary of 300"):
        train_run(sea, corpus, tmp_path / "alone")
    outcomes = dict(train_fleet([Assignment(run, tmp_path / run.id) for run in (sea, sky)], corpus, 2))
    assert isinstance(outcomes[sea.id], TokenError)
    assert outcome(tmp_path / sky.id) == undisturbed(sky)


def test_a_run_that_diverges_in_its_validation_does_so_again(make_spec, tiny_corpus, tmp_path, monkeypatch):
    spec, folder = make_spec(), tmp_path / "run"
    monkeypatch.setattr(validation, "validate", lambda *_: {"sky": (float("nan"), 0.0)})
    for _ in range(2):
        with pytest.raises(DivergedError, match="at step 5 the validation loss on 'sky' is nan"):
            train_run(spec, tiny_corpus, folder, keep=(5,))
