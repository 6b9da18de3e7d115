"""Losses of the models whose parameters are in `architectures`."""

import architectures as a
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from traces import array, cross_entropy

tokens = array(2, a.LENGTH, dtype="int32")
images = array(2, 16, 16, 3)
labels = array(2, dtype="int32")
times = array(2, 8)


def causal(q, k, v):
    """Computes causal attention over (batch, time, heads, head)."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def rotated(x):
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 10.0 ** -jnp.arange(half)[None, None, :]
    one, other = x[..., :half], x[..., half:]
    sin, cos = jnp.sin(angles)[None], jnp.cos(angles)[None]
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], -1)


def in_heads(x, heads=a.HEADS):
    return x.reshape(*x.shape[:-1], heads, -1)


def gpt2(model, tokens):
    x = model.wte(tokens) + model.wpe(jnp.arange(tokens.shape[1]))[None]
    for block in model.h:
        qkv = jnp.split(block.attn.c_attn(block.ln_1(x)), 3, axis=-1)
        attended = causal(*map(in_heads, qkv)).reshape(x.shape)
        x = x + block.attn.c_proj(attended)
        x = x + block.mlp.c_proj(nnx.gelu(block.mlp.c_fc(block.ln_2(x))))
    return cross_entropy(model.wte.attend(model.ln_f(x)), tokens)


def grouped(layer, x):
    q, k, v = rotated(layer.q_proj(x)), rotated(layer.k_proj(x)), layer.v_proj(x)
    return layer.o_proj(causal(q, k, v))


def latent(layer, x):
    q = in_heads(layer.q_b_proj(layer.q_a_layernorm(layer.q_a_proj(x))))
    q = jnp.concatenate([q[..., : a.HEAD], rotated(q[..., a.HEAD :])], -1)
    compressed, rotary = jnp.split(layer.kv_a_proj_with_mqa(x), [a.LATENT], axis=-1)
    up = in_heads(layer.kv_b_proj(layer.kv_a_layernorm(compressed)))
    k, v = jnp.split(up, 2, axis=-1)
    rotary = jnp.broadcast_to(rotated(rotary[:, :, None]), (*k.shape[:3], a.ROTARY))
    weights = nnx.softmax(jnp.einsum("bqhk,bshk->bhqs", q, jnp.concatenate([k, rotary], -1)))
    attended = jnp.einsum("bhqs,bshk->bqhk", weights, v)
    return layer.o_proj(attended.reshape(*x.shape[:2], -1))


def swiglu(layer, x):
    return layer.down_proj(nnx.silu(layer.gate_proj(x)) * layer.up_proj(x))


def mixtral(layer, x):
    best, chosen = jax.lax.top_k(layer.gate(x), 2)
    gates = jax.nn.one_hot(chosen, a.EXPERTS) * nnx.softmax(best)[..., None]
    gates = gates.sum(-2)
    w1, w2, w3 = (layer.experts[name][...] for name in ("w1", "w2", "w3"))
    hidden = nnx.silu(jnp.einsum("btd,edf->ebtf", x, w1)) * jnp.einsum("btd,edf->ebtf", x, w3)
    return jnp.einsum("bte,ebtd->btd", gates, jnp.einsum("ebtf,efd->ebtd", hidden, w2))


def deepseek(layer, x):
    scores = nnx.sigmoid(x @ layer.gate.kernel[...])
    _, chosen = jax.lax.top_k(scores + layer.gate.e_score_correction_bias[...][None, None], 2)
    gates = scores * jax.nn.one_hot(chosen, a.EXPERTS).sum(-2)
    out = swiglu(layer.shared_experts, x)
    for number, expert in enumerate(layer.experts):
        out = out + gates[..., number, None] * swiglu(expert, x)
    return out


def decoder(attention=grouped, mlp=swiglu, scanned=False):
    def block(layer, x):
        x = x + attention(layer.self_attn, layer.input_layernorm(x))
        return x + mlp(layer.mlp, layer.post_attention_layernorm(x))

    def loss(model, tokens):
        x = model.embed_tokens(tokens)
        if scanned:
            x = nnx.scan(
                lambda x, layer: block(layer, x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )(x, model.layers)
        else:
            for layer in model.layers:
                x = block(layer, x)
        return cross_entropy(model.lm_head(model.norm(x)), tokens)

    return loss


def vit(model, images, labels):
    x = model.patch_embed(images).reshape(images.shape[0], -1, a.WIDTH)
    x = jnp.concatenate([jnp.tile(model.cls_token[...], (x.shape[0], 1, 1)), x], 1)
    x = x + model.pos_embed[...][:, : x.shape[1]]
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return cross_entropy(model.head(model.norm(x)[:, 0]), labels)


def resnet(model, images, labels):
    x = nnx.relu(model.bn1(model.conv1(images)))
    for block in model.layer1:
        y = nnx.relu(block.bn1(block.conv1(x)))
        y = nnx.relu(block.bn2(block.conv2(y)))
        conv, norm = block.downsample
        x = nnx.relu(block.bn3(block.conv3(y)) + norm(conv(x)))
    return cross_entropy(model.fc(x.mean((1, 2))), labels)


def unet(model, images, times):
    time = model.time_embedding.linear_2(nnx.silu(model.time_embedding.linear_1(times)))
    x = skip = model.conv_in(images)

    def block(layer, x):
        y = layer.conv(nnx.silu(layer.norm(x)))
        y = y + layer.time_emb_proj(nnx.silu(time))[:, None, None]
        return y + layer.conv_shortcut(x)

    for layer in model.down:
        x = block(layer, x)
    attn, y = model.mid_attn, model.mid_attn.norm(x)
    q, k, v = (each(y).reshape(x.shape[0], -1, 16) for each in (attn.q, attn.k, attn.v))
    x = x + attn.proj_out((nnx.softmax(q @ k.swapaxes(1, 2)) @ v).reshape(x.shape))
    x = jnp.concatenate([model.upsample(x), skip], -1)
    for layer in model.up:
        x = block(layer, x)
    return ((model.conv_out(x) - images) ** 2).mean()


def mixer(model, images, labels):
    x = model.stem(images).reshape(images.shape[0], -1, a.WIDTH)
    x = jnp.pad(x, ((0, 0), (0, a.LENGTH - x.shape[1]), (0, 0)))
    for block in model.blocks:
        y = block.norm1(x).swapaxes(1, 2)
        x = x + block.token_mixing.fc2(nnx.gelu(block.token_mixing.fc1(y))).swapaxes(1, 2)
        x = x + block.channel_mixing.fc2(nnx.gelu(block.channel_mixing.fc1(block.norm2(x))))
    return cross_entropy(model.head(model.norm(x).mean(1)), labels)


def lstm(model, tokens):
    x = model.embed(tokens)
    for cell in (model.first, model.second, model.third):
        x = nnx.RNN(cell)(x)
    return cross_entropy(model.readout(x), tokens)


def equinox_gpt(model, tokens):
    def block(layer, x):
        y = jax.vmap(layer.norm1)(x)
        x = x + layer.attention(y, y, y)
        return x + jax.vmap(layer.mlp)(jax.vmap(layer.norm2)(x))

    def one(tokens):
        positions = jnp.arange(tokens.shape[0])
        x = jax.vmap(model.embedding)(tokens) + jax.vmap(model.position_embedding)(positions)
        if isinstance(model.blocks, list):
            for layer in model.blocks:
                x = block(layer, x)
        else:
            arrays, rest = eqx.partition(model.blocks, eqx.is_array)
            x, _ = jax.lax.scan(lambda x, one: (block(eqx.combine(one, rest), x), None), x, arrays)
        return jax.vmap(model.lm_head)(jax.vmap(model.norm)(x))

    return cross_entropy(jax.vmap(one)(tokens), tokens)


def equinox_net(model, images, labels):
    def one(image):
        x = model.norm(model.depthwise(model.conv(image.transpose(2, 0, 1))))
        steps = x.reshape(x.shape[0], -1).T
        start = jnp.zeros(a.HEAD)
        x, _ = jax.lax.scan(lambda state, x: (model.lstm(x, state), None), (start, start), steps)
        return model.head(model.gru(x[0], start))

    return cross_entropy(jax.vmap(one)(images), labels)


def with_nnx(model, loss, *args, **options):
    return lambda: (loss, nnx.eval_shape(lambda: model(nnx.Rngs(0), **options)), args)


def with_linen(model, *inputs):
    def built():
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        rest = {name: tree for name, tree in shapes.items() if name != "params"}

        def loss(params, rest, *inputs):
            logits = model.apply({"params": params, **rest}, *inputs)
            wanted = jnp.zeros(logits.shape[:-1], int)
            return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()

        return loss, shapes["params"], (rest, *inputs)

    return built


def with_equinox(model, loss, *args, **options):
    def built():
        shapes = eqx.filter_eval_shape(lambda: model(jax.random.key(0), **options))
        params, rest = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        return lambda params, *args: loss(eqx.combine(params, rest), *args), params, args

    return built


FORWARDS = {
    "GPT-2 (NNX)": with_nnx(a.GPT2, gpt2, tokens),
    "Llama (NNX)": with_nnx(a.Decoder, decoder(), tokens),
    "Llama, scanned (NNX)": with_nnx(a.Decoder, decoder(scanned=True), tokens, scanned=True),
    "Mixtral (NNX)": with_nnx(a.Decoder, decoder(mlp=mixtral), tokens, mlp=a.MixtralMLP),
    "Mixtral, scanned (NNX)": with_nnx(
        a.Decoder, decoder(mlp=mixtral, scanned=True), tokens, mlp=a.MixtralMLP, scanned=True
    ),
    "DeepSeek (NNX)": with_nnx(
        a.Decoder,
        decoder(latent, deepseek),
        tokens,
        mlp=a.DeepSeekMLP,
        attention=a.LatentAttention,
    ),
    "ViT (NNX)": with_nnx(a.ViT, vit, images, labels),
    "ResNet (NNX)": with_nnx(a.ResNet, resnet, images, labels),
    "U-Net (NNX)": with_nnx(a.UNet, unet, images, times),
    "MLP-Mixer (NNX)": with_nnx(a.MLPMixer, mixer, images, labels),
    "LSTM (NNX)": with_nnx(a.LSTM, lstm, tokens),
    "GPT (Linen)": with_linen(a.LinenGPT(), a.TOKENS),
    "GPT, scanned (Linen)": with_linen(a.LinenGPT(scanned=True), a.TOKENS),
    "ResNet (Linen)": with_linen(a.LinenResNet(), a.IMAGES),
    "LSTM (Linen)": with_linen(a.LinenLSTM(), a.TOKENS),
    "GPT (Equinox)": with_equinox(a.EquinoxGPT, equinox_gpt, tokens),
    "GPT, scanned (Equinox)": with_equinox(a.EquinoxGPT, equinox_gpt, tokens, scanned=True),
    "Convolutions and LSTM (Equinox)": with_equinox(a.EquinoxNet, equinox_net, images, labels),
}
"""For every model its loss, its parameters or module of NNX, and the other arguments."""
