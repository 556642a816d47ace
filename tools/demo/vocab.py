"""The five demo tokenizers, each of the kind its family ships, trained on the demo corpus.

Byte-level BPE in the DeepSeek-V3 and in the older deepseek-llm form, SentencePiece BPE with byte fallback in
the Mixtral form (tokenizer.model and an equal tokenizer.json) and in the ERNIE form (no dummy prefix, digits
apart). `write(family, folder)` writes the files; `Encoder(folder)` reads them back for training and checks.
"""
import io
import json
import os
import random
import string

import jinja2
import sentencepiece
from jinja2.sandbox import ImmutableSandboxedEnvironment
from sentencepiece import sentencepiece_model_pb2 as spm_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import corpus

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"

# The Split patterns of the published tokenizer.json files.
V3_SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
LLM_SPLITS = [
    "[\\r\\n]",
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "\\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
]
# Characters of the 13 byte values that never occur in UTF-8: added tokens of the deepseek-llm vocabulary.
LLM_BYTE_TOKENS = "ø ö ú ÿ õ ÷ û ý À ù Á þ ü".split()

V3_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='', is_first_sp=true) %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}"
    "{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}"
    "{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' %}"
    "{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}")
LLM_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
MIXTRAL_TEMPLATE = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""
ERNIE_TEMPLATE = """\
{%- if not add_generation_prompt is defined -%}
    {%- set add_generation_prompt = true -%}
{%- endif -%}
{%- if not cls_token is defined -%}
    {%- set cls_token = "<|begin_of_sentence|>" -%}
{%- endif -%}
{%- if not sep_token is defined -%}
    {%- set sep_token = "<|end_of_sentence|>" -%}
{%- endif -%}
{{- cls_token -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {{- "User: " + message["content"] + "\n" -}}
    {%- elif message["role"] == "assistant" -%}
        {{- "Assistant: " + message["content"] + sep_token -}}
    {%- elif message["role"] == "system" -%}
        {{- message["content"] + "\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "Assistant: " -}}
{%- endif -%}
"""


def training_text():
    """Lines of text in which every word of the world occurs often, plus the words around the templates."""
    rng, lines = random.Random(7), []
    for i in range(4000):
        story, talk = corpus.conversation(rng, 0.9)
        lines.append(story or "")
        for question, answer, short in talk:
            lines += [question, answer, f"Question: {question}", f"Answer: {short}", f"User: {question}", f"Assistant: {answer}"]
        lines.append("a [INST] " + (story or "") + " [/INST]")
    return lines


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")


def train_byte_level(splits, digits, specials, size):
    t = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in splits]
    steps += [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    t.pre_tokenizer = pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def added(text, special):
    return AddedToken(text, special=special, normalized=False, lstrip=False, rstrip=False, single_word=False)


def deepseek_tokenizer_config(template, pad, max_length):
    token = lambda text: {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                          "single_word": False}
    return {"add_bos_token": True, "add_eos_token": False, "bos_token": token(BOS),
            "clean_up_tokenization_spaces": False, "eos_token": token(EOS), "legacy": True, "model_max_length": max_length,
            "pad_token": token(pad), "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast",
            "chat_template": template}


def write_deepseek_v3(folder):
    t = train_byte_level(V3_SPLITS, False, [added(x, True) for x in (BOS, EOS, PAD)], 1000)
    t.normalizer = normalizers.Sequence([])
    t.add_tokens([added(f"<｜place▁holder▁no▁{i}｜>", False) for i in range(2)])
    t.add_tokens([added("<｜User｜>", False), added("<｜Assistant｜>", False)])
    t.add_special_tokens([added("<|EOT|>", True)])
    t.save(os.path.join(folder, "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", deepseek_tokenizer_config(V3_TEMPLATE, EOS, 2048))


def write_deepseek_llm(folder):
    t = train_byte_level(LLM_SPLITS, True, [], 1000)
    t.add_special_tokens([added(BOS, True), added(EOS, True)])
    t.add_tokens([added(x, False) for x in LLM_BYTE_TOKENS])
    t.save(os.path.join(folder, "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", deepseek_tokenizer_config(LLM_TEMPLATE, EOS, 2048))


def train_sentencepiece(size, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text()), model_writer=model, model_type="bpe", vocab_size=size,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2,
        required_chars=string.ascii_letters + string.punctuation, num_threads=1, minloglevel=2, **options)
    return model.getvalue()


def write_mixtral(folder):
    model = train_sentencepiece(900, split_digits=True, pad_id=-1)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(model)
    sp = spm_pb2.ModelProto.FromString(model)
    vocab = {p.piece: i for i, p in enumerate(sp.pieces)}
    normal = {p.piece: (p.score, i) for i, p in enumerate(sp.pieces) if p.type == p.NORMAL}
    merges = sorted(((-score, normal[p[:k]][1], normal[p[k:]][1], (p[:k], p[k:])) for p, (score, _) in normal.items()
                     for k in range(1, len(p)) if p[:k] in normal and p[k:] in normal))
    t = Tokenizer(models.BPE(vocab=vocab, merges=[m[-1] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([added(x, True) for x in ("<unk>", "<s>", "</s>")])
    t.save(os.path.join(folder, "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder, "special_tokens_map.json", names)
    write_json(folder, "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": {
            str(i): {"content": x, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": True} for i, x in enumerate(("<unk>", "<s>", "</s>"))},
        **names, "chat_template": MIXTRAL_TEMPLATE, "clean_up_tokenization_spaces": False, "legacy": True,
        "model_max_length": 2048, "pad_token": None, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False})


def write_ernie(folder):
    control = ["<|end_of_sentence|>", "<|begin_of_sentence|>", "<mask:1>"]
    model = train_sentencepiece(900, add_dummy_prefix=False, user_defined_symbols=list(string.digits), pad_id=-1,
                                control_symbols=control)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(model)
    size = len(spm_pb2.ModelProto.FromString(model).pieces)
    write_json(folder, "added_tokens.json", {"<|IMAGE_PLACEHOLDER|>": size})
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
             "cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>", "mask_token": "<mask:1>"}
    write_json(folder, "special_tokens_map.json", names)
    write_json(folder, "tokenizer_config.json", {
        **names, "tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False,
        "add_prefix_space": False, "legacy": True, "clean_up_tokenization_spaces": False, "model_max_length": 2048})
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(ERNIE_TEMPLATE)


WRITERS = {"mixtral": write_mixtral, "deepseek_v3": write_deepseek_v3, "deepseek_v2": write_deepseek_llm,
           "deepseek": write_deepseek_llm, "ernie4_5_moe": write_ernie}


def write(family, folder):
    os.makedirs(folder, exist_ok=True)
    WRITERS[family](folder)


class Encoder:
    """Text to ids as the family's published tokenizer does it, and the rendering of conversations."""

    def __init__(self, family, folder):
        self.family, self.cache = family, {}
        config = json.load(open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8"))
        self.config = {k: v["content"] if isinstance(v, dict) and "content" in v else v for k, v in config.items()}
        path = os.path.join(folder, "tokenizer.json")
        self.fast = Tokenizer.from_file(path) if os.path.exists(path) else None
        if self.fast is None:
            self.sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
            self.marks = {self.sp.id_to_piece(i): i for i in range(self.sp.get_piece_size()) if self.sp.is_control(i)}
            self.marks.update(json.load(open(os.path.join(folder, "added_tokens.json"))))
            self.size = self.sp.get_piece_size() + 1
        else:
            self.size = self.fast.get_vocab_size()
        template = os.path.join(folder, "chat_template.jinja")
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        env.globals["raise_exception"] = lambda text: (_ for _ in ()).throw(jinja2.TemplateError(text))
        self.template = env.from_string(open(template, encoding="utf-8").read() if os.path.exists(template)
                                        else config["chat_template"])

    def token(self, text):
        return self.marks[text] if self.fast is None else self.fast.token_to_id(text)

    @property
    def bos(self):
        return self.token(self.config["bos_token"]) if self.config["add_bos_token"] else None

    @property
    def eos(self):
        return self.token(self.config["eos_token"])

    def word_pairs(self):
        """[(id of a word, id of the same word with a space before it)]."""
        names = self.fast.get_vocab() if self.fast else {self.sp.id_to_piece(i): i for i in range(self.sp.get_piece_size())}
        return [(i, names[mark + n]) for n, i in names.items() for mark in "Ġ▁" if n and mark + n in names]

    def encode(self, text):
        """A whole text, without BOS; control tokens inside it are recognised."""
        if self.fast is not None:
            return self.fast.encode(text, add_special_tokens=False).ids
        ids, start = [], 0
        while start < len(text):
            hits = [(text.find(m, start), m) for m in self.marks if text.find(m, start) >= 0]
            end, mark = min(hits) if hits else (len(text), None)
            ids += self.sp.encode(text[start:end])
            ids += [self.marks[mark]] if mark else []
            start = end + len(mark or "")
        return ids

    def piece(self, text):
        """A stretch from inside a text, cut where no token crosses: no prefix is added."""
        ids = self.cache.get(text)
        if ids is None:
            if self.family == "mixtral":
                ids = [self.fast.token_to_id(t.value) for t in self.fast.model.tokenize(text.replace(" ", "▁"))]
            else:
                ids = self.encode(text)
            if len(self.cache) < 200000:
                self.cache[text] = ids
        return ids

    def render(self, messages, add_generation_prompt=True):
        names = {k: v for k, v in self.config.items() if k.endswith("_token") and isinstance(v, str)}
        return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt, **names)

    def prompt_ids(self, item):
        """Ids of a chat ({"messages"}) or plain ({"prompt"}) prompt, as an engine must feed them."""
        if "messages" in item:
            return self.encode(self.render(item["messages"]))
        return ([] if self.bos is None else [self.bos]) + self.encode(item["prompt"])

    def decode(self, ids):
        if self.fast is not None:
            return self.fast.decode(ids, skip_special_tokens=True)
        return self.sp.decode([i for i in ids if not self.sp.is_control(i) and i < self.sp.get_piece_size()])
