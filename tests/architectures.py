"""The parameters of small versions of known architectures.

Every entry of `ARCHITECTURES` returns the shapes of the parameters that a training loop passes to
the optimizer. The names are those of well-known implementations, where there is one.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

WIDTH, HEADS, SHARED_HEADS, HEAD, HIDDEN, VOCABULARY, LENGTH = 32, 4, 2, 8, 96, 101, 20
EXPERTS, LATENT, ROTARY, CLASSES, LAYERS = 6, 12, 4, 10, 3


def zeros(*shape):
    return nnx.Param(jnp.zeros(shape))


# Flax NNX


def dense(inputs, outputs, rngs, bias=False):
    return nnx.Linear(inputs, outputs, use_bias=bias, rngs=rngs)


class FusedAttention(nnx.Module):
    def __init__(self, rngs):
        self.c_attn = dense(WIDTH, 3 * WIDTH, rngs, bias=True)
        self.c_proj = dense(WIDTH, WIDTH, rngs, bias=True)


class GPT2Block(nnx.Module):
    def __init__(self, rngs):
        self.ln_1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attn = FusedAttention(rngs)
        self.ln_2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.mlp = nnx.Dict(
            c_fc=dense(WIDTH, 4 * WIDTH, rngs, bias=True),
            c_proj=dense(4 * WIDTH, WIDTH, rngs, bias=True),
        )


class GPT2(nnx.Module):
    """Fused qkv, learned positions, head tied to the embedding."""

    def __init__(self, rngs):
        self.wte = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.wpe = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.h = nnx.List([GPT2Block(rngs) for _ in range(2)])
        self.ln_f = nnx.LayerNorm(WIDTH, rngs=rngs)


class SwiGLU(nnx.Module):
    def __init__(self, rngs):
        self.gate_proj = dense(WIDTH, HIDDEN, rngs)
        self.up_proj = dense(WIDTH, HIDDEN, rngs)
        self.down_proj = dense(HIDDEN, WIDTH, rngs)


class GroupedAttention(nnx.Module):
    def __init__(self, rngs):
        self.q_proj = nnx.LinearGeneral(WIDTH, (HEADS, HEAD), use_bias=False, rngs=rngs)
        self.k_proj = nnx.LinearGeneral(WIDTH, (SHARED_HEADS, HEAD), use_bias=False, rngs=rngs)
        self.v_proj = nnx.LinearGeneral(WIDTH, (SHARED_HEADS, HEAD), use_bias=False, rngs=rngs)
        self.o_proj = nnx.LinearGeneral(
            (HEADS, HEAD), WIDTH, axis=(-2, -1), use_bias=False, rngs=rngs
        )


class DecoderBlock(nnx.Module):
    def __init__(self, rngs, mlp=SwiGLU, attention=GroupedAttention):
        self.input_layernorm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.self_attn = attention(rngs)
        self.post_attention_layernorm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.mlp = mlp(rngs)


class Decoder(nnx.Module):
    """Untied head; `scanned` keeps all layers in one stack."""

    def __init__(self, rngs, scanned=False, **block):
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        if scanned:
            stack = nnx.vmap(lambda rngs: DecoderBlock(rngs, **block))
            self.layers = stack(rngs.split(LAYERS))
        else:
            self.layers = nnx.List([DecoderBlock(rngs, **block) for _ in range(2)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.lm_head = dense(WIDTH, VOCABULARY, rngs)


class MixtralMLP(nnx.Module):
    def __init__(self, rngs):
        self.gate = dense(WIDTH, EXPERTS, rngs)
        self.experts = nnx.Dict(
            w1=zeros(EXPERTS, WIDTH, HIDDEN),
            w2=zeros(EXPERTS, HIDDEN, WIDTH),
            w3=zeros(EXPERTS, WIDTH, HIDDEN),
        )


class DeepSeekMLP(nnx.Module):
    def __init__(self, rngs):
        self.gate = nnx.Dict(kernel=zeros(WIDTH, EXPERTS), e_score_correction_bias=zeros(EXPERTS))
        self.experts = nnx.List([SwiGLU(rngs) for _ in range(2)])
        self.shared_experts = SwiGLU(rngs)


class LatentAttention(nnx.Module):
    def __init__(self, rngs):
        self.q_a_proj = dense(WIDTH, LATENT, rngs)
        self.q_a_layernorm = nnx.RMSNorm(LATENT, rngs=rngs)
        self.q_b_proj = dense(LATENT, HEADS * (HEAD + ROTARY), rngs)
        self.kv_a_proj_with_mqa = dense(WIDTH, LATENT + ROTARY, rngs)
        self.kv_a_layernorm = nnx.RMSNorm(LATENT, rngs=rngs)
        self.kv_b_proj = dense(LATENT, HEADS * 2 * HEAD, rngs)
        self.o_proj = dense(HEADS * HEAD, WIDTH, rngs)


class EncoderBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.mlp = nnx.Sequential(
            dense(WIDTH, HIDDEN, rngs, bias=True), nnx.gelu, dense(HIDDEN, WIDTH, rngs, bias=True)
        )


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patch_embed = nnx.Conv(3, WIDTH, (4, 4), strides=4, rngs=rngs)
        self.cls_token = zeros(1, 1, WIDTH)
        self.pos_embed = zeros(1, LENGTH, WIDTH)
        self.blocks = nnx.List([EncoderBlock(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = dense(WIDTH, CLASSES, rngs, bias=True)


class Bottleneck(nnx.Module):
    def __init__(self, rngs):
        conv = lambda inputs, outputs, size: nnx.Conv(  # noqa: E731
            inputs, outputs, (size, size), use_bias=False, rngs=rngs
        )
        self.conv1, self.bn1 = conv(16, 8, 1), nnx.BatchNorm(8, rngs=rngs)
        self.conv2, self.bn2 = conv(8, 8, 3), nnx.BatchNorm(8, rngs=rngs)
        self.conv3, self.bn3 = conv(8, 32, 1), nnx.BatchNorm(32, rngs=rngs)
        self.downsample = nnx.List([conv(16, 32, 1), nnx.BatchNorm(32, rngs=rngs)])


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 16, (7, 7), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(16, rngs=rngs)
        self.layer1 = nnx.List([Bottleneck(rngs)])
        self.fc = dense(32, CLASSES, rngs, bias=True)


class UNetBlock(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.norm = nnx.GroupNorm(inputs, 4, rngs=rngs)
        self.conv = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)
        self.time_emb_proj = dense(WIDTH, outputs, rngs, bias=True)
        self.conv_shortcut = nnx.Conv(inputs, outputs, (1, 1), rngs=rngs)


class ConvAttention(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.GroupNorm(16, 4, rngs=rngs)
        self.q, self.k, self.v, self.proj_out = (
            nnx.Conv(16, 16, (1, 1), rngs=rngs) for _ in range(4)
        )


class UNet(nnx.Module):
    def __init__(self, rngs):
        self.time_embedding = nnx.Dict(
            linear_1=dense(8, WIDTH, rngs, bias=True), linear_2=dense(WIDTH, WIDTH, rngs, bias=True)
        )
        self.conv_in = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.down = nnx.List([UNetBlock(8, 16, rngs)])
        self.mid_attn = ConvAttention(rngs)
        self.upsample = nnx.ConvTranspose(16, 8, (2, 2), rngs=rngs)
        self.up = nnx.List([UNetBlock(16, 8, rngs)])
        self.conv_out = nnx.Conv(8, 3, (3, 3), rngs=rngs)


class MixerBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.token_mixing = nnx.Dict(
            fc1=dense(LENGTH, HIDDEN, rngs, bias=True), fc2=dense(HIDDEN, LENGTH, rngs, bias=True)
        )
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.channel_mixing = nnx.Dict(
            fc1=dense(WIDTH, HIDDEN, rngs, bias=True), fc2=dense(HIDDEN, WIDTH, rngs, bias=True)
        )


class MLPMixer(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, WIDTH, (4, 4), strides=4, rngs=rngs)
        self.blocks = nnx.List([MixerBlock(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = dense(WIDTH, CLASSES, rngs, bias=True)


class LSTM(nnx.Module):
    """The cell with a layer for each gate, the one with all gates fused, and a fused GRU."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.first = nnx.LSTMCell(WIDTH, HEAD, rngs=rngs)
        self.second = nnx.OptimizedLSTMCell(HEAD, HEAD, rngs=rngs)
        self.third = nnx.GRUCell(HEAD, HEAD, rngs=rngs)
        self.readout = dense(HEAD, VOCABULARY, rngs, bias=True)


def of_nnx(model, **options):
    return lambda: nnx.state(nnx.eval_shape(lambda: model(nnx.Rngs(0), **options)), nnx.Param)


# Flax Linen


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x += nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        y = nn.Dense(HIDDEN)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(y)), None


class LinenGPT(nn.Module):
    scanned: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        x += self.param("pos_embedding", nn.initializers.zeros, (1, LENGTH, WIDTH))
        if self.scanned:
            stack = nn.scan(
                LinenBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=LAYERS,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = stack(name="blocks")(x, None)
        else:
            for layer in range(2):
                x, _ = LinenBlock(name=f"block_{layer}")(x)
        return nn.Dense(VOCABULARY, name="logits")(nn.LayerNorm(name="ln_f")(x))


class LinenResNet(nn.Module):
    """Names from `nn.compact`; that of the classifier is `Dense_0`."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(16, (7, 7), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(16, (3, 3), feature_group_count=4)(x)
        x = nn.Conv(16, (3, 3), feature_group_count=16, name="depthwise_conv")(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class LinenLSTM(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        layers = [
            nn.Embed(VOCABULARY, WIDTH),
            nn.RNN(nn.OptimizedLSTMCell(HEAD)),
            nn.RNN(nn.GRUCell(HEAD)),
            nn.Dense(VOCABULARY, name="head"),
        ]
        return nn.Sequential(layers)(tokens)


def of_linen(model, *inputs):
    def shapes():
        return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]

    return shapes


TOKENS = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
IMAGES = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)


# Equinox


class EquinoxBlock(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, key):
        self.norm1, self.norm2 = eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=key)
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, HIDDEN, depth=1, key=key)


class EquinoxGPT(eqx.Module):
    embedding: eqx.nn.Embedding
    position_embedding: eqx.nn.Embedding
    blocks: EquinoxBlock | list[EquinoxBlock]
    norm: eqx.nn.LayerNorm
    lm_head: eqx.nn.Linear

    def __init__(self, key, scanned=False):
        self.embedding = eqx.nn.Embedding(VOCABULARY, WIDTH, key=key)
        self.position_embedding = eqx.nn.Embedding(LENGTH, WIDTH, key=key)
        if scanned:
            self.blocks = eqx.filter_vmap(EquinoxBlock)(jax.random.split(key, LAYERS))
        else:
            self.blocks = [EquinoxBlock(key) for _ in range(2)]
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.lm_head = eqx.nn.Linear(WIDTH, VOCABULARY, key=key)


class EquinoxNet(eqx.Module):
    """Convolutions and both recurrent cells."""

    conv: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    lstm: eqx.nn.LSTMCell
    gru: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(3, 16, 3, key=key)
        self.depthwise = eqx.nn.Conv2d(16, 16, 3, groups=16, key=key)
        self.norm = eqx.nn.GroupNorm(4, 16)
        self.lstm = eqx.nn.LSTMCell(16, HEAD, key=key)
        self.gru = eqx.nn.GRUCell(HEAD, HEAD, key=key)
        self.head = eqx.nn.Linear(HEAD, CLASSES, key=key)


def of_equinox(model, **options):
    def shapes():
        built = eqx.filter_eval_shape(lambda: model(jax.random.key(0), **options))
        return eqx.filter(built, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    return shapes


ARCHITECTURES = {
    "GPT-2 (NNX)": of_nnx(GPT2),
    "Llama (NNX)": of_nnx(Decoder),
    "Llama, scanned (NNX)": of_nnx(Decoder, scanned=True),
    "Mixtral (NNX)": of_nnx(Decoder, mlp=MixtralMLP),
    "Mixtral, scanned (NNX)": of_nnx(Decoder, mlp=MixtralMLP, scanned=True),
    "DeepSeek (NNX)": of_nnx(Decoder, mlp=DeepSeekMLP, attention=LatentAttention),
    "ViT (NNX)": of_nnx(ViT),
    "ResNet (NNX)": of_nnx(ResNet),
    "U-Net (NNX)": of_nnx(UNet),
    "MLP-Mixer (NNX)": of_nnx(MLPMixer),
    "LSTM (NNX)": of_nnx(LSTM),
    "GPT (Linen)": of_linen(LinenGPT(), TOKENS),
    "GPT, scanned (Linen)": of_linen(LinenGPT(scanned=True), TOKENS),
    "ResNet (Linen)": of_linen(LinenResNet(), IMAGES),
    "LSTM (Linen)": of_linen(LinenLSTM(), TOKENS),
    "GPT (Equinox)": of_equinox(EquinoxGPT),
    "GPT, scanned (Equinox)": of_equinox(EquinoxGPT, scanned=True),
    "Convolutions and LSTM (Equinox)": of_equinox(EquinoxNet),
}
