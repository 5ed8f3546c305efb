"""The label-attention model against a plain implementation, pair by pair and without padding."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.windows import encode_windows
from psy_agents_noaug.models.execution import enable_packing
from psy_agents_noaug.models.label_attention import LabelAttentionModel, criterion_vectors

CRITERIA = MAJOR_DEPRESSIVE_EPISODE[:3]
POSTS = [
    "The bus was late again this morning.",
    "We cooked soup. " * 20,
    "I bought a lamp.",
]
WIDTH = 32


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder):
    return AutoTokenizer.from_pretrained(tiny_encoder)


def encoded(tokenizer, texts, *, max_length=64, stride=8):
    nothing = [None] * len(texts)
    return encode_windows(tokenizer, nothing, texts, max_length=max_length, stride=stride)


def texts_of(tokenizer, criteria):
    rows = encoded(tokenizer, [c.text for c in criteria], max_length=128).rows
    return rows.pad(range(len(criteria)))


@pytest.fixture
def make_model(tiny_encoder, tokenizer):
    """Return a function to a model with weights that do not depend on its settings."""

    def make(*, learned=False, packed=True, pooling="max", max_tokens=4096):
        encoder = AutoModel.from_pretrained(tiny_encoder, add_pooling_layer=False)
        if packed:
            enable_packing(encoder)
        torch.manual_seed(1)
        return LabelAttentionModel(
            encoder,
            first_texts=texts_of(tokenizer, CRITERIA),
            learned=learned,
            hidden_size=WIDTH,
            head_layers=1,
            head_width=None,
            head_dropout=0.0,
            window_pooling=pooling,
            max_tokens=max_tokens,
        ).eval()

    return make


def run(model, tokenizer, posts=POSTS, asked=CRITERIA):
    """The outputs for every pair of a post and a criterion, and the windows."""
    windows, n_criteria = encoded(tokenizer, posts), len(asked)
    rows, criteria, pairs = [], [], []
    for post in range(len(posts)):
        for criterion in range(n_criteria):
            for row in range(windows.starts[post], windows.starts[post + 1]):
                rows.append(row)
                criteria.append(criterion)
                pairs.append(post * n_criteria + criterion)
    outputs = model(
        windows.rows.pad(range(len(windows.rows))),
        criterion_texts=texts_of(tokenizer, asked),
        windows=torch.tensor(rows),
        criteria=torch.tensor(criteria),
        pairs=torch.tensor(pairs),
        n_pairs=len(posts) * n_criteria,
    )
    return outputs, windows


def reference(model, encoder, tokenizer, row, criterion):
    """Log odds of "met", span logits and attention of one window and criterion, token by token."""

    def states(ids):
        return encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]

    tokens = states(row)
    own = states(tokenizer(criterion.text).input_ids).mean(dim=0)
    attend, start, end = model.query(own).view(3, WIDTH)
    keys = [torch.nn.functional.gelu(model.key(token)) for token in tokens]
    attention = torch.stack([key @ attend / WIDTH**0.5 + model.attention_bias for key in keys])
    spans = torch.stack(
        [torch.stack([key @ start / WIDTH**0.5, key @ end / WIDTH**0.5]) for key in keys]
    )
    weights = attention.exp() / attention.exp().sum()
    found = sum(weight * token for weight, token in zip(weights, tokens, strict=True))
    pointed = torch.stack([attention.max(), attention.exp().sum().log()])
    odds = model.head(torch.cat([found, own, found * own, pointed]))[0]
    return odds, spans, attention


@pytest.mark.parametrize("packed", [True, False])
def test_it_equals_a_plain_implementation(make_model, tiny_encoder, tokenizer, packed):
    model = make_model(packed=packed)
    plain = AutoModel.from_pretrained(tiny_encoder, add_pooling_layer=False).eval()
    with torch.no_grad():
        outputs, windows = run(model, tokenizer)
        position = 0
        for post in range(len(POSTS)):
            for index, criterion in enumerate(CRITERIA):
                odds = []
                for number in range(windows.starts[post], windows.starts[post + 1]):
                    row = windows.rows.row(number)[0].tolist()
                    one, spans, attention = reference(model, plain, tokenizer, row, criterion)
                    odds.append(one)
                    length = len(row)
                    torch.testing.assert_close(
                        outputs.spans[position, :length], spans, rtol=0, atol=1e-5
                    )
                    torch.testing.assert_close(
                        outputs.attention[position, :length], attention, rtol=0, atol=1e-5
                    )
                    assert torch.isneginf(outputs.attention[position, length:]).all()
                    position += 1
                pair = outputs.label_odds[post * len(CRITERIA) + index]
                torch.testing.assert_close(pair, max(odds), rtol=0, atol=1e-5)
    assert position == len(outputs.attention) > len(POSTS) * len(CRITERIA)


@pytest.mark.parametrize("learned", [True, False])
def test_before_training_each_criterion_attends_to_the_token_that_is_most_like_it(
    make_model, tokenizer, learned
):
    model = make_model(learned=learned)
    likeness = criterion_vectors(model.encoder, texts_of(tokenizer, CRITERIA))
    mask = torch.ones(1, len(CRITERIA), dtype=torch.long)
    with torch.no_grad():
        _, attention, borders = model.score(likeness.unsqueeze(0), mask, likeness)
    for scores in (attention[0], *borders):
        assert scores.argmax(dim=1).tolist() == [0, 1, 2]


def test_a_criterion_is_read_alike_whatever_others_there_are(make_model, tokenizer):
    with torch.no_grad():
        all_three, _ = run(make_model(), tokenizer)
        alone, _ = run(make_model(), tokenizer, asked=CRITERIA[1:2])
    torch.testing.assert_close(all_three.label_odds[1::3], alone.label_odds, rtol=0, atol=1e-5)


def test_learned_vectors_begin_as_the_encoded_ones_and_are_trained(make_model, tokenizer):
    with torch.no_grad():
        encoded_, learned = (run(make_model(learned=how), tokenizer)[0] for how in (False, True))
    torch.testing.assert_close(encoded_.label_odds, learned.label_odds, rtol=0, atol=1e-5)
    model = make_model(learned=True)
    run(model, tokenizer)[0].label_odds.sum().backward()
    assert model.vectors.grad.abs().sum() > 0
    assert set(model.state_dict()) - set(make_model().state_dict()) == {"vectors"}


def test_windows_in_turns_give_the_same_gradients(make_model, tokenizer):
    gradients = []
    for max_tokens in (4096, 64):
        model = make_model(max_tokens=max_tokens)
        outputs, _ = run(model, tokenizer)
        (outputs.label_odds.sum() + outputs.spans.square().mean()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_spans_begin_and_end_in_the_post_or_nowhere(make_model, tokenizer):
    model = make_model()
    windows = encoded(tokenizer, POSTS[:1])
    length = int(windows.rows.lengths[0])
    context = torch.zeros(1, length, dtype=torch.long)
    context[0, 2:4] = 1
    outputs = model(
        windows.rows.pad([0]),
        criterion_texts=texts_of(tokenizer, CRITERIA),
        windows=torch.tensor([0]),
        criteria=torch.tensor([0]),
        pairs=torch.tensor([0]),
        n_pairs=1,
        context_mask=context,
    )
    assert torch.isfinite(outputs.spans[0, [0, 2, 3]]).all()
    assert torch.isneginf(outputs.spans[0, [1, *range(4, length)]]).all()
