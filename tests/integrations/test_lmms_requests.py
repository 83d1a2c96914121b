"""What requests of lmms-eval are read as."""

import pytest

from futurel1.errors import ConfigError
from futurel1.integrations.lmms_requests import generation_of


def test_gen_kwargs_are_respected() -> None:
    kwargs = {"max_new_tokens": 16, "until": ["\n\n"], "do_sample": False}
    plain = generation_of(kwargs, None)
    assert (plain.max_new_tokens, plain.do_sample, plain.until) == (16, False, ())
    sampled = generation_of({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "until": "</answer>"}, None)
    assert (sampled.do_sample, sampled.temperature, sampled.top_p, sampled.top_k) == (True, 0.7, 0.9, 5)
    assert (sampled.until, sampled.max_new_tokens) == (("</answer>",), 2048)
    assert generation_of({"do_sample": True}, None).temperature == 1.0
    assert not generation_of({"temperature": 0, "top_p": None, "do_sample": True}, None).do_sample
    assert not generation_of({"temperature": 0.5, "do_sample": False}, None).do_sample
    with pytest.raises(ConfigError, match="num_beams=4"):
        generation_of({"num_beams": 4}, None)
    assert generation_of(kwargs, 99).max_new_tokens == 99
