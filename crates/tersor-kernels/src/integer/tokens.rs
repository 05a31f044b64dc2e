//! [`Tokens`]: activations in the order in which the micro-kernels read them.

use std::sync::Arc;

use super::{Activations, Padding, Panels};
use crate::{Fault, Isa};

/// A description of the form in which activations are packed for integer products: the instruction-set level, the layout of the columns,
/// whether codes are stored in 16 bits as well, and the zero point of the weights if all rows and groups have the same.
/// [`Panels::token_layout`] returns the layout that a weight matrix needs. Matrices with equal layouts can share packed activations
/// ([`Tokens`]). A cache of packed activations can use the layout or [`TokenLayout::key`] as the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TokenLayout {
    isa: Isa,
    padding: Padding,
    /// Whether codes are stored in 16 bits as well: 8-bit weights are multiplied as pairs of 16-bit numbers then.
    pairs: bool,
    /// The zero point of the weights, if all rows and groups have the same.
    zero: Option<u8>,
}

impl TokenLayout {
    pub(super) fn new(isa: Isa, w: &Panels) -> Self {
        let pairs = isa.multiplies_pairs() && w.bits() == 8;
        Self { isa, padding: w.padding(), pairs, zero: w.same_zero() }
    }

    /// Fails with `Fault::Range` unless the two layouts have the same zero point; 256 stands for zero points that differ between groups.
    pub(super) fn check_zero(&self, other: Self) -> Result<(), Fault> {
        let [limit, found] = [self.zero, other.zero].map(|z| z.map_or(256, usize::from));
        let what = "zero point of the layout of tokens";
        if limit == found { Ok(()) } else { Err(Fault::Range { what, limit, found }) }
    }

    /// Returns a number by which a cache can find activations packed in this layout. Equal layouts have equal numbers. Different layouts
    /// have different numbers as long as they have fewer than 2^40 columns and blocks of fewer than 4096 columns.
    #[must_use]
    pub fn key(&self) -> u128 {
        let Padding { cols, group, block } = self.padding;
        let zero = self.zero.map_or(256, u128::from);
        let fields =
            [(cols as u128, 40), (group as u128, 40), (block as u128, 12), (zero, 9), (u128::from(self.pairs), 1)];
        fields.iter().fold(u128::from(self.isa.number()), |key, (value, bits)| key << bits ^ value)
    }

    /// Returns the instruction-set level of the products that read activations in this layout.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Returns the padding that [`Activations`] must have to be packed in this layout: the number of columns, the size of the groups that
    /// they are cut into, and the size of the blocks to which each group is padded with zeros.
    #[must_use]
    pub fn padding(&self) -> Padding {
        self.padding
    }
}

/// Tokens that a micro-kernel processes at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBlock {
    pub first: usize,
    pub tokens: usize,
}

/// The packed form of activations, without the activations themselves.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    layout: TokenLayout,
    blocks: Vec<TokenBlock>,
    /// The codes of block after block, `[quad, token, plane]`, four columns a quad. Empty if the activations have this order already: one
    /// plane of one token.
    quads: Vec<[i8; 4]>,
    /// The same codes in 16 bits, in column order 0, 2, 1, 3; empty unless the layout has pairs.
    pairs: Vec<[i16; 4]>,
    /// The initial values of the sums of a group, `[token, plane, group]`: the negative sum of its codes, times the zero point if all
    /// groups have the same.
    offsets: Vec<i32>,
}

impl Packed {
    /// Packs activations. Fails with `Fault::Length` if their columns have another layout.
    pub(super) fn new(x: &Activations, layout: TokenLayout) -> Result<Self, Fault> {
        layout.padding.check(x.padding())?;
        let zero = layout.zero.map_or(1, i32::from);
        let offsets = x.sums().iter().map(|s| s.wrapping_mul(-zero)).collect();
        let (planes, each) = (x.planes(), x.width() / 4);
        let (mut blocks, mut first) = (Vec::new(), 0);
        for &tokens in layout.isa.token_blocks(layout.pairs, planes) {
            while x.tokens() - first >= tokens {
                blocks.push(TokenBlock { first, tokens });
                first += tokens;
            }
        }
        let codes = x.codes().as_chunks::<4>().0;
        let packs = x.tokens() * planes > 1 || layout.pairs;
        let mut quads = vec![[0i8; 4]; if packs { codes.len() } else { 0 }];
        for block in blocks.iter().filter(|_| packs) {
            let (from, count) = (block.first * planes, block.tokens * planes);
            let span = from * each..(from + count) * each;
            for (v, row) in codes[span.clone()].chunks_exact(each.max(1)).enumerate() {
                quads[span.clone()].iter_mut().skip(v).step_by(count).zip(row).for_each(|(out, q)| *out = *q);
            }
        }
        let mut pairs = Vec::new();
        if layout.pairs {
            pairs = quads.iter().map(|q| [q[0], q[2], q[1], q[3]].map(i16::from)).collect();
        }
        Ok(Self { layout, blocks, quads, pairs, offsets })
    }

    /// Returns the view of the micro-kernels on `x`, the activations that this was packed from.
    pub(super) fn view<'a>(&'a self, x: &'a Activations) -> TokenView<'a> {
        let Self { layout, blocks, quads, pairs, offsets } = self;
        let quads = if quads.is_empty() { x.codes().as_chunks::<4>().0 } else { quads };
        TokenView { x, isa: layout.isa, blocks, quads, pairs, each: x.width() / 4, offsets }
    }
}

/// Activations together with their packed form, in the order in which integer products read them. They are packed once and then shared by
/// the products ([`Task`](super::Task)) of all weight matrices with the same [`TokenLayout`].
#[derive(Clone, Debug)]
pub struct Tokens {
    x: Arc<Activations>,
    packed: Packed,
}

impl Tokens {
    /// Packs activations `x`, `[tokens, cols]`, in the order of bytes that a product with a weight matrix reads; `layout` is
    /// [`Panels::token_layout`] of that matrix. Fails with `Fault::Length` unless `x` was made with the [`Padding`] that
    /// [`TokenLayout::padding`] returns for `layout`: the same number of columns, cut into the same groups, padded to the same blocks.
    pub fn pack(x: Arc<Activations>, layout: TokenLayout) -> Result<Self, Fault> {
        Ok(Self { packed: Packed::new(&x, layout)?, x })
    }

    /// Returns the layout that the activations are packed in.
    #[must_use]
    pub fn layout(&self) -> TokenLayout {
        self.packed.layout
    }

    /// Returns the activations as they were before packing.
    #[must_use]
    pub fn activations(&self) -> &Arc<Activations> {
        &self.x
    }

    pub(super) fn view(&self) -> TokenView<'_> {
        self.packed.view(&self.x)
    }
}

/// Packed tokens as the micro-kernels read them.
#[derive(Clone, Copy)]
pub(crate) struct TokenView<'a> {
    pub x: &'a Activations,
    pub isa: Isa,
    pub blocks: &'a [TokenBlock],
    quads: &'a [[i8; 4]],
    pairs: &'a [[i16; 4]],
    /// Quads of one plane of a token.
    each: usize,
    offsets: &'a [i32],
}

impl TokenView<'_> {
    /// Returns the index of a block's first quad.
    fn start(&self, block: TokenBlock) -> usize {
        block.first * self.x.planes() * self.each
    }

    /// Returns the 8-bit codes of a block of tokens, that is of neighbouring tokens that a kernel processes at once, as
    /// `[width / 4, tokens, planes]`, row-major. An element has the codes of four neighbouring columns. `width` is the number of columns
    /// with padding and `tokens` the number of tokens of the block. `planes` is the number of codes of one activation: 1, or 3 that are its
    /// digits of base 256, the lowest first.
    pub fn quads(&self, block: TokenBlock) -> &[[i8; 4]] {
        let n = block.tokens * self.x.planes() * self.each;
        &self.quads[self.start(block)..][..n]
    }

    /// Returns the 8-bit codes of a block of tokens that [`quads`](Self::quads) returns, widened to 16 bits, as
    /// `[width / 4, tokens, planes]`, row-major. An element has the codes of four neighbouring columns in the order 0, 2, 1, 3. `width` is
    /// the number of columns with padding, `tokens` the number of tokens of the block, and `planes` the number of codes of one activation,
    /// 1 or 3. Panics unless the [`TokenLayout`] that the activations are packed in stores codes in 16 bits, as it does at the AVX2 level
    /// for weights of 5 to 8 bits.
    #[cfg(target_arch = "x86_64")]
    pub fn pairs(&self, block: TokenBlock) -> &[[i16; 4]] {
        let n = block.tokens * self.x.planes() * self.each;
        &self.pairs[self.start(block)..][..n]
    }

    /// Returns the initial values of the integer sums of a block of tokens, which add up products of activation codes and weight codes, as
    /// `[tokens, planes, groups]`, row-major. `planes` is the number of codes of one activation, 1 or 3 (a plane has one code of each
    /// activation), and `groups` the number of groups of columns. An initial value is `-zero * sum`, where `sum` is the sum of the
    /// activation codes of one token, plane and group. `zero` is the zero point of the weights if all rows and groups have the same one,
    /// and 1 otherwise, in which case the kernel multiplies by the zero point of each group itself.
    pub fn offsets(&self, block: TokenBlock) -> &[i32] {
        let each = self.x.planes() * self.x.padding().groups();
        &self.offsets[block.first * each..][..block.tokens * each]
    }
}
