"""Derives the stored goldens again, where torch and transformers are."""

import json

import numpy as np
import pytest
import tiny
import tiny_families

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch to derive the goldens again")
pytest.importorskip("transformers", reason="needs transformers to derive the goldens again")

import make_family_goldens  # noqa: E402  (imports torch)
import make_goldens  # noqa: E402  (imports torch)

ELSEWHERE = ("rwkv7", "rwkv7_fla")  # the package of its authors gave these
FAMILIES = [v for v, c in tiny_families.VARIANTS.items() if c["model_type"] not in ELSEWHERE]


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_stored_logits_are_what_transformers_computes(variant: str) -> None:
    fresh = make_goldens.golden(variant)
    for golden in tiny.goldens(variant):
        found = fresh[f"logits_{len(golden.prompt)}"]
        np.testing.assert_allclose(found, golden.logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("variant", FAMILIES)
def test_stored_logits_of_families_are_what_transformers_computes(variant: str) -> None:
    fresh, (logits, checksum) = make_family_goldens.golden(variant), tiny_families.golden(variant)
    assert int(fresh["weights_crc32"]) == checksum
    np.testing.assert_allclose(fresh["logits"], logits, rtol=0, atol=2e-5)


def test_stored_frequencies_are_what_transformers_computes() -> None:
    stored = json.loads((tiny.GOLDENS.parent / "rope.json").read_text())["cases"]
    assert [case["name"] for case in stored] == list(make_goldens.ROPE_CASES)
    for case in stored:
        fresh = make_goldens.rope_golden(case["name"])
        assert fresh["config"] == case["config"]
        np.testing.assert_allclose(fresh["inv_freq"], case["inv_freq"], rtol=1e-6)
        assert fresh["attention_factor"] == pytest.approx(case["attention_factor"], rel=1e-9)
