"""A complete small system on disk, for tests of everything above decoding: two random models, a tokenizer, a bundle.

Nothing in it has learned anything; but it can read any text (a token is a byte), its two models disagree at many
positions.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.compatibility import model_card
from lm_eval_hybrid.bundles.manifest import Behavior, Manifest, PromptSpec, SaeSpec, SteeringSpec, Training

WIDTH, LAYERS, LATENTS, CONTEXT = 32, 4, 3, 16384
NEWLINE, SPACE = "Ċ", "Ġ"  # as a byte-level vocabulary writes them
KEYS = ("plan", "compute", "check")
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</{{ message['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class TinySystem:
    """Folders of a system; `bundle` names the two models by path."""

    base: Path
    thinking: Path
    bundle: Path

    @property
    def arguments(self) -> dict[str, str]:
        """Model arguments that choose this system."""
        return {"behaviors": str(self.bundle)}


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A token for every byte, `<pad>` and `<eos>`."""
    vocabulary = {"<pad>": 0, "<eos>": 1}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=chat_template
    )


def tiny_model(seed: int, width: int = WIDTH, context: int = CONTEXT) -> LlamaForCausalLM:
    """A random Llama in float32, with weights large enough for varied text, all of it ASCII."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).float().eval()
    vocabulary = tiny_tokenizer().get_vocab()
    spoken = [vocabulary[chr(code)] for code in range(33, 127)]
    spoken += [vocabulary[name] for name in ("<eos>", NEWLINE, SPACE)]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn_like(weight) * 0.3)
        heard = torch.ones(258, dtype=torch.bool)
        heard[spoken] = False
        model.lm_head.weight[heard] = 0  # a logit of zero is never the largest
    return model


def write_system(
    folder: Path,
    chat_template: str | None = None,
    prompt: PromptSpec | None = None,
    context: int = CONTEXT,
) -> TinySystem:
    """Write a system below `folder`; the same arguments write the same one."""
    tokenizer = tiny_tokenizer(chat_template)
    base, thinking = tiny_model(0, context=context), tiny_model(0, context=context)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in thinking.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    for name, model in (("base", base), ("thinking", thinking)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape)

    tensors = {
        "bias": noise(WIDTH),
        **{f"vector.{key}": noise(WIDTH) for key in KEYS},
        "sae.encoder.weight": noise(LATENTS, WIDTH),
        "sae.encoder.bias": torch.zeros(LATENTS),
        "sae.decoder.weight": noise(WIDTH, LATENTS),
        "sae.decoder.bias": torch.zeros(WIDTH),
        "sae.mean": torch.zeros(WIDTH),
    }
    manifest = Manifest(
        name="tiny",
        version="1.0.0",
        description="Random vectors for tests",
        license="MIT",
        authors=("tests",),
        citation="",
        base=model_card(str(folder / "base"), base.config, tokenizer),
        thinking=model_card(str(folder / "thinking"), thinking.config, tokenizer),
        steering=SteeringSpec(layer=2, coefficients=(0.5, 1.0), windows=(1, 0), gate_rate=0.3),
        sae=SaeSpec(layer=1, latents=LATENTS, k=1),
        behaviors=tuple(
            Behavior(key=key, latent=i, title=key, description="", examples=(), tensor=f"vector.{key}")
            for i, key in enumerate(KEYS)
        ),
        prompt=prompt or PromptSpec(thinking="raw"),
        training=Training(recipe="random", seed=1, code_version="0", data="none", data_sha256="0" * 64, holdout={}),
    )
    Bundle(manifest, tensors).save(folder / "bundle")
    return TinySystem(folder / "base", folder / "thinking", folder / "bundle")
