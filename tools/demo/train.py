"""Trains one demo model on the CPU and writes it in the published layout.

    train.py FAMILY --out models [--steps N] [--seed S]

Loss: cross-entropy on the answers, plus some on the questions and a little on all other text. The stories grow with the progress
of the run (corpus.draw_level); the learning rate warms up, stays, and falls linearly in the last part. A file
`finish` in the work folder starts the fall at once, so that a run can be ended early at full quality.
"""
import argparse
import json
import os
import random
import time

import torch
import torch.nn.functional as F

import corpus
import families
import starting
import vocab

DEFAULT_STEPS = 3000
TEXT_WEIGHT = 0.03
QUESTION_WEIGHT = 0.2     # questions repeat words of the story, which is practice in looking up
BALANCE = 0.01
BIAS_RATE = 1e-3
DECAY_SHARE = 0.3
HELD_STEPS = 400         # for which the attention of layers 0 to 2 keeps its starting weights


class Samples:
    """Conversations as id sequences: `x` inputs, `y` targets, `w` 1 on answers, less elsewhere."""

    def __init__(self, family, encoder, seed):
        self.family, self.enc, self.rng = family, encoder, random.Random(seed)

    def sentences(self, text, first=""):
        """Ids of a text whose first sentence is preceded by `first`; the rest is cut at sentence ends."""
        head, *rest = text.split(". ")
        parts = [first + head + ("." if rest else "")] + [" " + s + ("." if i + 1 < len(rest) else "")
                                                            for i, s in enumerate(rest)]
        return [t for p in parts for t in self.enc.piece(p)]

    def chat(self, story, talk):
        """[(ids, is_answer), ...]: the family's template, cut at the answers."""
        e, f, out = self.enc, self.family, []
        for i, (question, answer, _) in enumerate(talk):
            lead = story if i == 0 and story else None
            gap = " " if self.rng.random() < 0.8 else "\n"
            def user(first):
                return self.sentences(lead, first) + e.piece(gap + question) if lead else e.piece(first + question)
            if f == "mixtral":
                out.append((([1] if i == 0 else []) + e.piece("  [INST]") + user(" ") + e.piece(" [/INST]"), False))
                out.append((e.piece(" " + answer) + [2], True))
            elif f == "deepseek_v3":
                out.append((([e.bos] if i == 0 else []) + [e.token("<｜User｜>")] + user("") + [e.token("<｜Assistant｜>")], False))
                out.append((e.piece(answer) + [e.eos], True))
            elif f in ("deepseek", "deepseek_v2"):
                out.append((([e.bos] if i == 0 else []) + e.piece("User:") + user(" ") + e.piece("\n\nAssistant:"), False))
                out.append((e.piece(" " + answer) + [e.eos], True))
            else:
                first = [e.token("<|begin_of_sentence|>")] if i == 0 else []
                out.append((first + e.piece("User:") + user(" ") + e.piece("\nAssistant: "), False))
                out.append((e.piece(answer) + [e.token("<|end_of_sentence|>")], True))
        return out

    def plain(self, story, talk):
        e, mixtral = self.enc, self.family == "mixtral"
        out = [(([] if e.bos is None else [e.bos]) + self.sentences(story, " " if mixtral else ""), False)]
        for question, answer, short in talk:
            out.append((e.piece("\nQuestion:") + e.piece(" " + question) + e.piece("\nAnswer:"), False))
            out.append((e.piece(" " + short) + [e.eos], True))
        return out

    def draw(self, progress):
        story, talk = corpus.conversation(self.rng, progress)
        parts = self.plain(story, talk) if story and self.rng.random() < 0.45 else self.chat(story, talk)
        ids = [t for p, _ in parts for t in p]
        weight = [1.0 if a else QUESTION_WEIGHT if i else TEXT_WEIGHT for i, (p, a) in enumerate(parts) for _ in p]
        target = list(ids)
        if self.family == "ernie4_5_moe":      # turns end with </s> when generated, with the separator in a history
            target = [self.enc.eos if t == self.enc.token("<|end_of_sentence|>") else t for t in ids]
        return ids[:-1], target[1:], weight[1:]

    def batches(self, progress, size, pool=8):
        """`pool` batches of sequences of similar length."""
        rows = sorted((self.draw(progress) for _ in range(size * pool)), key=lambda r: len(r[0]))
        groups = [rows[i * size:(i + 1) * size] for i in range(pool)]
        self.rng.shuffle(groups)
        for g in groups:
            n = max(len(r[0]) for r in g)
            pad = lambda k, zero: torch.tensor([list(r[k]) + [zero] * (n - len(r[k])) for r in g])
            yield pad(0, 0), pad(1, 0), pad(2, 0.0)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps: for the attention matrices, which form look-ups faster so."""

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"] if group["lr"] > 0 else []:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(state["m"], group["momentum"])
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    g = x @ x.T
                    x = 3.4445 * x + (-4.7750 * g + 2.0315 * g @ g) @ x
                x = x.T if tall else x
                p.mul_(1 - group["lr"] * 0.1).add_(x, alpha=-group["lr"] * max(1, x.shape[0] / x.shape[1]) ** 0.5)


class Balance:
    """Keeps the experts evenly used: an auxiliary loss, or the selection bias where the family has one."""

    def __init__(self, model):
        self.routers = [m for n, m in model.named_modules() if n.endswith(".mlp.gate")]
        self.seen = []
        for m in self.routers:
            m.register_forward_hook(lambda mod, args, out: self.seen.append((mod, out[0], out[2])))

    def loss(self, keep):
        """Mean over layers of E * sum(share of tokens * mean probability); updates selection biases in place."""
        total = 0.0
        for router, logits, chosen in self.seen:
            n = logits.shape[-1]
            logits, chosen = logits.view(-1, n)[keep], chosen.view(keep.shape[0], -1)[keep]
            load = torch.bincount(chosen.flatten(), minlength=n).float()
            load /= load.sum()
            statics = getattr(router, "moe_statics", router)
            bias = getattr(statics, "e_score_correction_bias", None)
            if bias is not None:
                with torch.no_grad():
                    bias += BIAS_RATE * torch.sign(1.0 / n - load)
            scores = logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True) if bias is not None and bias.dim() == 1 \
                else logits.softmax(-1)
            total = total + n * (load * scores.mean(0)).sum()
        count, self.seen = max(len(self.seen), 1), []
        return total / count


def decode_check(model, samples, items):
    """Share of `items` whose plain prompt is answered exactly, by teacher forcing; a quick progress figure."""
    right = {}
    with torch.no_grad():
        for item in items:
            parts = samples.enc.prompt_ids(item)
            answer = samples.enc.piece((" " if samples.family not in ("deepseek_v3", "ernie4_5_moe") else "") + item["answer"])
            logits = model(torch.tensor([parts + answer])).logits[0, len(parts) - 1:-1]
            right.setdefault(item["kind"], []).append(logits.argmax(-1).tolist() == answer)
    return {k: round(sum(v) / len(v), 2) for k, v in right.items()}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("family", choices=list(families.CONFIGS))
    p.add_argument("--out", default="models")
    p.add_argument("--work", default="/tmp/demo-train")
    p.add_argument("--steps", type=int)
    p.add_argument("--batch", type=int, default=10)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--muon", type=float, default=0.02)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--resume-at", type=float, default=0.0, help="share of the steps that the saved state of an earlier run stands for")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    steps = a.steps or DEFAULT_STEPS
    work, folder = os.path.join(a.work, a.family), os.path.join(a.out, families.FOLDERS[a.family])
    os.makedirs(work, exist_ok=True)
    if a.resume_at == 0:
        vocab.write(a.family, folder)
    encoder = vocab.Encoder(a.family, folder)
    config = families.make_config(a.family, encoder)
    model = families.build(config)
    starting.init_weights(model, config, encoder)
    if a.resume_at > 0:
        model.load_state_dict(torch.load(os.path.join(work, "state.pt")))
    model.train()
    print(a.family, sum(x.numel() for x in model.parameters()), "parameters", flush=True)
    samples, balance = Samples(a.family, encoder, a.seed), Balance(model)
    trained = [(n, x) for n, x in model.named_parameters() if x.requires_grad]
    held = [x for n, x in trained if x.dim() == 2 and any(f"layers.{i}.self_attn." in n for i in (0, 1, 2))]
    free = [x for n, x in trained if x.dim() == 2 and any(f"layers.{i}.self_attn." in n for i in (3,))]
    words = [x for n, x in trained if "embed_tokens" in n]
    early = [x for n, x in trained if x.dim() >= 2 and any(f"layers.{i}.mlp." in n for i in (0, 1))]
    taken = {id(x) for x in held + free + words + early}
    muon = Muon([{"params": free, "share": 1.0}, {"params": held, "share": 0.0}], a.muon)
    optimiser = torch.optim.AdamW([
        {"params": [x for n, x in trained if x.dim() >= 2 and id(x) not in taken], "weight_decay": 0.05, "share": 1.0},
        {"params": early, "weight_decay": 0.05, "share": 0.2},
        {"params": words, "weight_decay": 0.0, "share": 0.25},
        {"params": [x for n, x in trained if x.dim() < 2], "weight_decay": 0.0, "share": 1.0}],
        lr=a.lr, betas=(0.9, 0.98), eps=1e-9, foreach=True)
    probe = corpus.test_set(seed=99, per_kind=20)
    first = step = int(steps * a.resume_at)
    decay_from, begun, sums = int(steps * (1 - DECAY_SHARE)), time.time(), [0.0, 0.0, 0]
    while step < steps:
        for x, y, w in samples.batches(step / steps, a.batch):
            rate = min(1.0, (step - first + 1) / 100, max(0.0, (steps - step) / (steps - decay_from)))
            muon.param_groups[1]["share"] = 0.2 if step > HELD_STEPS else 0.0
            for group in optimiser.param_groups:
                group["lr"] = a.lr * rate * group["share"]
            for group in muon.param_groups:
                group["lr"] = a.muon * rate * group["share"]
            logits = model(x, use_cache=False).logits
            each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
            w = w.flatten()
            answer, text = (w == 1.0).float(), w * ((w > 0) & (w < 1.0))
            answer_loss = (each * answer).sum() / answer.sum()
            text_loss = (each * text).sum() / answer.sum()
            loss = answer_loss + text_loss + BALANCE * balance.loss(w > 0)
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            muon.step()
            step += 1
            sums = [sums[0] + answer_loss.item(), sums[1] + text_loss.item(), sums[2] + 1]
            if step % 100 == 0:
                print(f"{step}/{steps} {time.time() - begun:.0f}s answers {sums[0] / sums[2]:.4f} text {sums[1] / sums[2]:.3f}", flush=True)
                sums = [0.0, 0.0, 0]
            if step % 250 == 0:
                model.eval()
                print("   ", decode_check(model, samples, probe), flush=True)
                model.train()
                balance.seen = []
                torch.save(model.state_dict(), os.path.join(work, "state.pt"))
            if os.path.exists(os.path.join(work, "finish")) and step < decay_from:
                decay_from, steps = step, step + int(step * DECAY_SHARE)
                print(f"finish: falling from step {step} to {steps}", flush=True)
            if step >= steps:
                break
    families.save(folder, config, model.eval())
    with open(os.path.join(work, "run.json"), "w") as f:
        json.dump({"steps": steps, "seconds": round(time.time() - begun), "batch": a.batch, "lr": a.lr, "seed": a.seed}, f)
    print("done", time.time() - begun, decode_check(model, samples, probe), flush=True)


if __name__ == "__main__":
    main()
