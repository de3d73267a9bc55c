"""Where do implementations and papers part ways, and which way do we go?

The texts of the page "How we differ". Where transformers is named, its version 5.23 is meant, and
tests/test_agreement.py shows the difference on its own code. Neither torch nor streamlit is imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fork:
    """One thing that is done in more than one way."""

    title: str
    others: str  # what is done elsewhere, and by whom
    ours: str
    why: str
    source: str


FORKS: dict[str, list[Fork]] = {
    "Who is chosen": [
        Fork(
            "How a group is scored",
            "DeepSeek-V3: the sum of its two best biased scores. DeepSeek-V2: its best score. transformers' V3 always "
            "takes two, and fails on groups of one expert.",
            "`group_score` chooses; of a group of one, `top2` takes the one there is.",
            "One good expert should not carry a node in V3, where a token takes two per node on average.",
            "arXiv 2412.19437, section 2.1.2; arXiv 2405.04434, section 2.2.2",
        ),
        Fork(
            "What hides the other groups",
            "0 in DeepSeek's first V3 code, in vLLM and SGLang until February 2025, in transformers until 2026, and in "
            "its DeepSeek-V2 still. -inf in all of V3 today.",
            "-inf, always.",
            "A negative bias makes scores negative, and then a hidden expert with 0 wins. With softmax it takes a "
            "score that underflows to 0, which ties with the mask.",
            "DeepSeek-V3 issue 741, vLLM PR 13474, SGLang PR 3705, transformers PR 45441",
        ),
        Fork(
            "In which precision logits are made",
            "DeepSeek multiplies token and centroid in float32. Mixtral, OLMoE and Qwen3 do it in the model's bfloat16 "
            "in transformers; on random weights about 1 token in 200 takes another expert for it.",
            "float32, as the whole toy is. Given bfloat16 logits, the affinity is still computed in float32.",
            "Eight bits make ties: a choice should not hang on rounding.",
            "arXiv 2101.03961, section 2.4 (router in float32)",
        ),
    ],
    "How much a choice counts": [
        Fork(
            "Is the bias in the gate?",
            "No in both papers. Yes by mistake in vLLM until January 2025, and in others since.",
            "No: the bias decides who is chosen, and nothing else. The Playground checks it live.",
            "In the gate it would change the output and the gradients, which is what loss-free balancing avoids.",
            "arXiv 2412.19437, eq. 16; vLLM PR 12002",
        ),
        Fork(
            "Are gates divided by their sum?",
            "Yes: DeepSeek-V3, Mixtral, Qwen3. No: the loss-free paper, DeepSeek-V2 (in transformers whatever its "
            "config says), OLMoE. DeepSeek adds 1e-20 to the sum, the others add nothing.",
            "`norm_topk` chooses; 1e-20 is added.",
            "Sigmoid affinities can all underflow to 0, and 0 / 0 is no gate. With softmax it changes nothing.",
            "arXiv 2412.19437, eq. 13; arXiv 2408.15664, eq. 1; arXiv 2405.04434, eq. 21",
        ),
        Fork(
            "With one choice, K = 1",
            "DeepSeek's own code does not normalise when K = 1. transformers does, and then the gate is always 1. "
            "Switch keeps the affinity.",
            "Normalised if `norm_topk` is on: the gate is constant, and the router learns nothing through it.",
            "A switch should do what it says. Turn `norm_topk` off to try Switch's way.",
            "arXiv 2101.03961, eq. 2",
        ),
        Fork(
            "In which precision gates are kept",
            "OLMoE and Qwen3 in transformers round them to the model's bfloat16, so that they sum to 1 within 0.4 %. "
            "DeepSeek and Mixtral keep float32.",
            "float32: normalised gates sum to `route_scale` within rounding. The Playground checks it live.",
            "A gate that is rounded is a gate that drifts.",
            "transformers, OlmoeTopKRouter and Qwen3MoeTopKRouter",
        ),
    ],
    "What is dropped": [
        Fork(
            "Who goes when an expert is full",
            "Switch and GShard: whoever comes last in the batch, first choices before second. DeepSeek-V2: the lowest "
            "affinity.",
            "The lowest unbiased affinity; ties keep the earlier token.",
            "Order in a batch means nothing; the affinity says what a token would lose.",
            "arXiv 2405.04434, section 2.2.4; arXiv 2101.03961, section 2.2; arXiv 2006.16668, algorithm 1",
        ),
        Fork(
            "Are the surviving gates renormalised?",
            "DeepSpeed and FairScale drop first and normalise then, so the survivor of two gets weight 1. In GShard's "
            "algorithm the gates are normalised before.",
            "No: normalised over the K chosen, then dropped. What is dropped contributes 0.",
            "The residual and the shared experts still carry the token; nothing is scaled up for want of room.",
            "arXiv 2006.16668, algorithm 1",
        ),
    ],
    "Losses": [
        Fork(
            "DeepSeek-V3 is not free of auxiliary loss",
            "Often told: it has none.",
            "The preset has both: the bias, and a loss within sequences of weight 0.0001.",
            "The paper keeps it on throughout, against imbalance within single sequences.",
            "arXiv 2412.19437, sections 2.1.2 and 4.2",
        ),
        Fork(
            "Over a sequence or over the batch?",
            "DeepSeek-V2 and V3: within each sequence. Mixtral, OLMoE and Qwen3 in transformers: over the batch. Qwen "
            "trains over all devices' batches.",
            "Both, with a weight each: `alpha` and `alpha_sequence`.",
            "Within sequences, experts cannot specialise in a domain: 2.258 against 2.253 in loss, and over the batch "
            "the loss does as well as the bias.",
            "arXiv 2412.19437, section 4.5.3; arXiv 2501.11873",
        ),
        Fork(
            "Which choices does f count?",
            "DeepSeek-V3's loss counts the top-K of the plain affinities, without bias and groups; Megatron as well. "
            "Switch and GShard count first choices alone.",
            "`sequence` as in DeepSeek-V3; `batch` counts the choices that were made; `switch` and `gshard` the first.",
            "Each follows its source; where the source is silent (`batch`), the load that is drawn is the one counted.",
            "arXiv 2412.19437, eq. 18; arXiv 2101.03961, eq. 5; arXiv 2006.16668, algorithm 1",
        ),
        Fork(
            "What does balance cost?",
            "transformers' loss has no 1/K in f: balance costs K.",
            "Balance costs alpha, whatever K and E are.",
            "So that one alpha means one strength. Ours is theirs divided by K.",
            "arXiv 2412.19437, eq. 18; transformers, load_balancing_loss_func",
        ),
        Fork(
            "Per layer, or layers pooled?",
            "transformers adds up counts and affinities of all layers, then multiplies: two collapsed layers with "
            "different favourites look balanced.",
            "Each layer's loss, then the mean over layers.",
            "Each layer has its own experts; one cannot make up for another.",
            "transformers, load_balancing_loss_func",
        ),
        Fork(
            "Does looking ahead balance?",
            "Often told: multi-token prediction keeps DeepSeek-V3's experts balanced.",
            "It is another task loss, for text, and has nothing to do with balance.",
            "It predicts further tokens. Neither bias nor balance loss depends on it.",
            "arXiv 2412.19437, section 2.2",
        ),
    ],
    "The bias": [
        Fork(
            "Which way does it move?",
            "Up for experts with less than the mean. A widely copied note has the difference the other way round, "
            "which makes collapse worse.",
            "b += u · sign(mean - load).",
            "What is underused must become easier to choose.",
            "arXiv 2408.15664, algorithm 1",
        ),
        Fork(
            "Sign, or in proportion?",
            "DeepSeek-V3: the sign. The loss-free paper also tries steps in proportion to the shortfall, and does not "
            "say in which unit.",
            "Both; `proportional` is relative to the mean load.",
            "In raw counts, u would have to change with the size of the batch.",
            "arXiv 2408.15664, section 4.3",
        ),
        Fork(
            "Does the mean of the biases drift?",
            "With plain signs, yes: the lowest bias in DeepSeek-V3's weights is +2.02. torchtitan and SMEBU subtract "
            "the mean.",
            "`sign` drifts as in the paper; `sign_centred` does not. Charts show b less its mean.",
            "A constant added to all of b changes no choice.",
            "transformers PR 45441, torchtitan",
        ),
    ],
    "What is measured": [
        Fork(
            "What is MaxVio?",
            "The loss-free paper: (max - mean) / mean of the load. Some write max / min - 1.",
            "The paper's; the mean over layers and the worst layer.",
            "max / min - 1 is infinite as soon as one expert has no token.",
            "arXiv 2408.15664, eq. 4",
        ),
        Fork(
            "Of one batch, or of all?",
            "The loss-free paper prints MaxVio of the whole validation set (0.04); per batch it is drawn smoothed over "
            "100 steps.",
            "Both, named: `batch` is the mean of single batches, `global` that of the summed load. A band shows what a "
            "perfectly fair router would show in one batch.",
            "Even fair dice are uneven in a small batch: without the band every toy looks unbalanced.",
            "arXiv 2408.15664, table 2 and figure 3",
        ),
    ],
}
