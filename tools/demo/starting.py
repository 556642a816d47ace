"""Starting weights that already hold the skeleton of a look-up, so that training takes minutes instead of hours.

From plain random weights, attention needs thousands of steps to find that a thing and its owner belong together,
because two layers must agree before either helps (mimetic initialisation, Trockman and Kolter 2023, is the idea):
- all embeddings share a constant direction, which the heads of layer 0 use with RoPE to look exactly 4, 3, 1 and 2
  tokens back ("Tom has the red ball": from `ball` to `Tom` and to `red`) and attach what they see;
- a word has the same embedding with and without the space before it;
- layer 1 looks for earlier places of the same word and fetches what was attached there, and the other way round;
- layer 2, where an answer starts, looks at the last word of the question, which holds what layer 1 fetched, and
  elsewhere at the person named 3 or 2 tokens back ("Tom is in the", "Tom has the").
Grouped attention can compare words only in the dimensions that RoPE hardly turns, 16 to 20 of a head: there every word
of a story gets a code of its own (`code_words`), where MLA has 32 unturned dimensions and does with random embeddings.
Everything else is random. `train.py` holds the attention of layers 0 to 2 still until the rest has learnt to read it.
"""
import math
from types import SimpleNamespace

import torch

import corpus

OFFSETS = (4, 3, 1, 2)      # heads 0 and 1 share a key-value head in the grouped families
EMBEDDING = 0.3
GAINS = (0.3, 2.0, 2.0)     # of attention output into the residual stream, layers 0 to 2
CODED_GAINS = (0.3, 0.25, 2.0)  # where words have codes: a word must keep its share of the constant direction to be found by its place
SHARPNESS = 5.0             # of layer 2's look at a distance, there
CODE = 0.7                  # length of a code, in lengths of the embedding


def orthonormal(rows, dim, avoid):
    """`rows` orthonormal rows of width `dim`, all orthogonal to the unit vector `avoid`."""
    q = torch.linalg.qr(torch.cat((avoid[:, None], torch.randn(dim, rows)), 1)).Q
    return q[:, 1:].T.contiguous()


def rope_pairs(dim, theta, interleaved):
    """[(first index, second index, frequency)] of the rotated pairs of a head."""
    return [(2 * i, 2 * i + 1, theta ** (-2 * i / dim)) if interleaved else (i, i + dim // 2, theta ** (-2 * i / dim))
            for i in range(dim // 2)]


def random_weights(model, tied):
    for name, p in model.named_parameters():
        if p.dim() < 2 or "e_score_correction_bias" in name:
            continue
        std = p.shape[-1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            std *= 0.03 if tied else 0.1
        elif "embed_tokens" in name:
            std = 0.09 if tied else EMBEDDING
        elif "lm_head" in name:
            std *= 0.5
        torch.nn.init.normal_(p, std=std)


def positional_rows(pairs, width, offset, constant, damped=0.05):
    """Query rows (head width x hidden) that peak `offset` tokens back against keys of phase 0; pairs slower than `damped` count less."""
    rows = torch.zeros(width, len(constant))
    for a, b, f in fast_pairs(pairs):
        weight = min(1.0, f / damped)
        rows[a], rows[b] = weight * math.cos(offset * f) * constant, -weight * math.sin(offset * f) * constant
    return rows


def key_rows(pairs, width, constant):
    rows = torch.zeros(width, len(constant))
    for a, _, _ in fast_pairs(pairs):
        rows[a] = constant
    return rows


def fast_pairs(pairs):
    """Pairs that turn enough within a few tokens to tell their distance."""
    return [p for p in pairs if p[2] > 0.05]


def slow_dims(pairs):
    """Dimensions that a story's length does not rotate away."""
    return [d for a, b, f in pairs if f < 0.012 for d in (a, b)]


def grouped_positional(attention, c, plan):
    d = attention.head_dim
    q, k, v = (m.weight.view(-1, d, c["hidden_size"]) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    per = q.shape[0] // k.shape[0]
    for h in range(q.shape[0]):
        q[h] = plan.sharpness * positional_rows(plan.pairs, d, plan.offsets[h], plan.constant, damped=0.6)
        attention.o_proj.weight[:, h * d:(h + 1) * d] = plan.gain * plan.outs[h].T
    for g in range(k.shape[0]):
        k[g] = key_rows(plan.pairs, d, plan.constant)
        v[g] = plan.reads[g * per // 2]


def grouped_match(attention, c, plan):
    """Half the key heads hold the word and return what was attached to it; the other half the other way round."""
    d, dims = attention.head_dim, slow_dims(plan.pairs)
    q, k, v = (m.weight.view(-1, d, c["hidden_size"]) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    q.mul_(0.1)
    k.mul_(0.1)
    scale, per, n = (60 / len(dims)) ** 0.5, q.shape[0] // k.shape[0], len(dims)
    for g in range(k.shape[0]):
        word = g < k.shape[0] // 2
        k[g, dims] = scale * (plan.same if word else 1.3 * plan.attached)[:n]
        q[g * per:(g + 1) * per, dims] = scale * (plan.same if word else 1.3 * plan.reads[0])[:n]
        v[g] = plan.attached if word else plan.same
    for h in range(q.shape[0]):
        attention.o_proj.weight[:, h * d:(h + 1) * d] = plan.gain * plan.outs[h].T


def query_parts(attention, c):
    """(query weights as [heads, width, inputs], the matrix in front or None)."""
    heads = c["num_attention_heads"]
    if c["q_lora_rank"]:
        return attention.q_b_proj.weight.view(heads, -1, c["q_lora_rank"]), attention.q_a_proj.weight
    return attention.q_proj.weight.view(heads, -1, c["hidden_size"]), None


def mla_positional(attention, c, plan):
    nope, rope, rank, vd = (c[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "v_head_dim"))
    q, first = query_parts(attention, c)
    if first is not None:
        first[0] = plan.constant
    unit = torch.zeros(q.shape[-1])
    unit[0] = 1.0
    attention.kv_a_proj_with_mqa.weight[:rank] = torch.cat(plan.reads)
    attention.kv_a_proj_with_mqa.weight[rank:] = key_rows(plan.pairs, rope, plan.constant)
    kv = attention.kv_b_proj.weight.view(len(q), nope + vd, rank)
    for h in range(len(q)):
        q[h, :nope] *= 0.3
        q[h, nope:] = positional_rows(plan.pairs, rope, plan.offsets[h], unit if first is not None else plan.constant)
        kv[h, nope:] = torch.eye(vd, rank) if h < 2 else torch.eye(vd, rank).roll(vd, 1)
        attention.o_proj.weight[:, h * vd:(h + 1) * vd] = plan.gain * plan.outs[h].T


def mla_match(attention, c, plan):
    nope, rank, vd = c["qk_nope_head_dim"], c["kv_lora_rank"], c["v_head_dim"]
    q, first = query_parts(attention, c)
    kv_a = attention.kv_a_proj_with_mqa.weight
    kv_a[:nope], kv_a[nope:2 * nope] = plan.same, 1.5 * plan.attached
    if first is not None:
        first[:nope], first[nope:2 * nope] = plan.same, plan.reads[0]
    q[:, nope:] *= 0.2
    kv = attention.kv_b_proj.weight.view(len(q), -1, rank)
    for h in range(len(q)):
        word, half = h < len(q) // 2, nope * (h >= len(q) // 2)
        kv[h] = 0
        kv[h, :nope, half:half + nope] = 1.3 * torch.eye(nope)
        kv[h, nope:, nope - half:2 * nope - half] = torch.eye(vd)
        if first is None:
            q[h, :nope] = 2.0 * plan.same if word else 2.8 * plan.reads[0]
        else:
            q[h, :nope] = 0
            q[h, :nope, half:half + nope] = (2.0 if word else 2.8) * torch.eye(nope)
        attention.o_proj.weight[:, h * vd:(h + 1) * vd] = plan.gain * plan.outs[h].T


def answer_offsets(encoder):
    """How far the last word of a question lies behind the place where the answer starts: chat form, plain form."""
    word = encoder.piece(" ball")[-1]
    question = "Who has the red ball?"
    prompts = ({"messages": [{"role": "user", "content": f"Tom has the red cup. {question}"}]},
               {"prompt": f"Tom has the red cup.\nQuestion: {question}\nAnswer:"})
    return [len(ids) - 1 - ids.index(word) for ids in map(encoder.prompt_ids, prompts)]


def spread_codes(count, dim):
    """`count` unit vectors of width `dim`, pushed apart until no two are alike."""
    x = torch.nn.functional.normalize(torch.randn(count, dim), dim=1)
    for _ in range(500):
        near = (x @ x.T).fill_diagonal_(-1)
        x = torch.nn.functional.normalize(x - 0.3 * (20 * near).softmax(1) @ x, dim=1)
    return x


def story_words(encoder):
    """The ids of each word that a story is about: [without and with a space before it], or the only form there is."""
    words = corpus.NAMES + corpus.THINGS + corpus.COLOURS + corpus.PLACES + corpus.COUNTED + corpus.NUMBERS
    return [sorted({p[0] for p in (encoder.piece(w), encoder.piece(" " + w)) if len(p) == 1}) for w in words]


def code_words(embedding, words, directions):
    """Tells `words` apart by their part in `directions`, of which nothing else has any."""
    embedding -= embedding @ directions.T @ directions
    size = CODE * embedding.norm(dim=1).mean()
    for forms, code in zip(words, spread_codes(len(words), len(directions))):
        embedding[forms] = embedding[forms[-1]] + size * code @ directions


def coded(embedding, encoder, plan, width):
    """The plan of layer 0 and the directions of layer 1's look-up for words with codes: what is attached to a word meets neither its code
    nor anything else, and all words have the same share of the constant direction."""
    hidden = len(plan.constant)
    basis = torch.linalg.qr(torch.cat((plan.constant[:, None], torch.randn(hidden, hidden - 1)), 1)).Q.T[1:]
    same, attached, rest = basis.split((width, width, hidden - 1 - 2 * width))
    embedding -= embedding @ attached.T @ attached
    code_words(embedding, story_words(encoder), same[:len(slow_dims(plan.pairs))])
    away = embedding - (embedding @ plan.constant)[:, None] * plan.constant
    embedding.copy_(torch.nn.functional.normalize(away) * away.norm(dim=1).mean() + plan.share * plan.constant)
    plan.reads = (same, plan.reads[1])
    plan.outs = (attached, *(torch.linalg.qr(torch.randn(len(rest), width)).Q.T @ rest for _ in range(3)))
    return same


@torch.no_grad()
def init_weights(model, c, encoder):
    random_weights(model, c["tie_word_embeddings"])
    hidden, mla = c["hidden_size"], "kv_lora_rank" in c
    scale = 0.3 if c["tie_word_embeddings"] else 1.0
    constant = torch.randn(hidden).sign() / hidden ** 0.5
    embedding = model.model.embed_tokens.weight
    for bare, spaced in encoder.word_pairs():
        embedding[bare] = embedding[spaced]
    share = 0.6 * embedding.std() * hidden ** 0.5
    embedding.copy_(0.8 * (embedding - (embedding @ constant)[:, None] * constant) + share * constant)
    width = c["v_head_dim"] if mla else hidden // c["num_attention_heads"]
    interleaved = mla or c["model_type"] == "ernie4_5_moe"
    pairs = rope_pairs(c["qk_rope_head_dim"] if mla else width, c["rope_theta"], interleaved)
    positional, match = (mla_positional, mla_match) if mla else (grouped_positional, grouped_match)
    gains = [scale * g for g in (GAINS if mla else CODED_GAINS)]
    layers = [layer.self_attn for layer in model.model.layers]
    fresh = lambda: torch.linalg.qr(torch.randn(hidden, hidden)).Q.split(width)
    plan = SimpleNamespace(pairs=pairs, constant=constant, offsets=OFFSETS, share=share, gain=gains[0], sharpness=1.0, outs=fresh(),
                           reads=orthonormal(2 * width, hidden, constant).split(width))
    same = orthonormal(width, hidden, constant)
    if not mla:
        same = coded(embedding, encoder, plan, width)
    positional(layers[0], c, plan)
    plan = SimpleNamespace(pairs=pairs, same=same, attached=plan.outs[0], reads=plan.reads, outs=fresh(), gain=gains[1])
    match(layers[1], c, plan)
    plan = SimpleNamespace(pairs=pairs, constant=constant, offsets=answer_offsets(encoder) + [3, 2], gain=gains[2],
                           sharpness=SHARPNESS, reads=(plan.outs[0], plan.outs[2]), outs=fresh())
    positional(layers[2], c, plan)
