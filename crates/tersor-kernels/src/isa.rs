//! [`Isa`]: the instruction-set levels of the kernels, detected once a process.

use std::sync::OnceLock;

/// Compiles a function body three times, as it stands, for AVX2 with FMA, and for AVX-512, and calls the version of `isa`. The compiler
/// vectorizes the bodies.
macro_rules! versions {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident(isa: Isa $(, $arg:ident: $ty:ty)* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$doc])*
        $vis fn $name(isa: Isa $(, $arg: $ty)*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn wide($($arg: $ty),*) $(-> $out)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
            fn widest($($arg: $ty),*) $(-> $out)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            if isa.has_avx512_vnni() {
                // SAFETY: `isa` proves the instructions.
                return unsafe { widest($($arg),*) };
            }
            #[cfg(target_arch = "x86_64")]
            if isa.has_avx2() {
                // SAFETY: `isa` proves the instructions.
                return unsafe { wide($($arg),*) };
            }
            let _ = isa;
            body($($arg),*)
        }
    )*};
}
pub(crate) use versions;

/// An instruction-set level (plain Rust, AVX2, or AVX-512 with VNNI), the argument `isa` of the kernels. [`Isa::detect`] returns the one to
/// use. A level other than [`Isa::SCALAR`] exists only on a processor that has its instructions; kernels rely on that.
///
/// ```
/// use tersor_kernels::{Isa, vector};
/// let (a, b) = ([0.1f32; 100], [0.3f32; 100]);
/// for isa in Isa::available() {
///     assert_eq!(vector::dot(isa, &a, &b), vector::dot(Isa::SCALAR, &a, &b), "{}", isa.name());
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Isa(Level);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Isa {
    /// The level of plain Rust, available on every processor. Its results are those that kernels must give at every other level, to the
    /// bit.
    pub const SCALAR: Isa = Isa(Level::Scalar);

    /// Returns a number that differs between levels.
    pub(crate) fn number(self) -> u8 {
        self.0 as u8
    }

    /// Returns the highest level of this processor, or the one that the environment variable `TERSOR_ISA` names (`scalar`, `avx2` or
    /// `avx512vnni`). A name that is unknown, or a level that the processor lacks, is ignored. The result is the same for the whole life of
    /// the process.
    #[must_use]
    pub fn detect() -> Isa {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let requested = std::env::var("TERSOR_ISA").unwrap_or_default();
            let levels = Isa::available();
            let found = levels.iter().find(|l| l.name() == requested).or(levels.last());
            found.copied().unwrap_or(Isa::SCALAR)
        })
    }

    /// Returns all levels of this processor in ascending order; the first is always [`Isa::SCALAR`].
    #[must_use]
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut levels = vec![Isa::SCALAR];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            levels.push(Isa(Level::Avx2));
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq");
            if wide && is_x86_feature_detected!("avx512vnni") {
                levels.push(Isa(Level::Avx512Vnni));
            }
        }
        levels
    }

    /// Returns the name of the level: `scalar`, `avx2` or `avx512vnni`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "avx512vnni",
        }
    }

    /// Returns a text that names the instruction sets that results on this processor depend on, such as `avx2, products fma`: [`Isa::name`]
    /// of the detected level, then the set that the libraries for float products and factorizations choose. Results of a calibration can
    /// differ in their bytes between processors with different texts.
    #[must_use]
    pub fn fingerprint() -> String {
        #[cfg(target_arch = "x86_64")]
        let products = if is_x86_feature_detected!("avx512f") {
            "avx512"
        } else if is_x86_feature_detected!("fma") {
            "fma"
        } else {
            "sse"
        };
        #[cfg(not(target_arch = "x86_64"))]
        let products = std::env::consts::ARCH;
        format!("{}, products {products}", Isa::detect().name())
    }

    /// Returns this level, or AVX2 if it is above that: for loops that are faster with registers of 256 bits.
    pub(crate) fn capped_at_avx2(self) -> Isa {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => Isa(Level::Avx2),
            _ => self,
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2(self) -> bool {
        self.0 != Level::Scalar
    }

    /// Returns whether 8-bit weights are multiplied as pairs of 16-bit numbers, because the level has no instruction that sums products of
    /// bytes in 32 bits.
    pub(crate) fn multiplies_pairs(self) -> bool {
        self.name() == "avx2"
    }

    /// Returns whether one instruction sums four products of bytes in 32 bits.
    pub(crate) fn multiplies_quads(self) -> bool {
        self.name() == "avx512vnni"
    }

    /// Returns the numbers of tokens that a micro-kernel can process at once, the largest first, the last 1. `pairs`: 8-bit weights are
    /// multiplied as pairs of 16-bit numbers; `planes`: 8-bit planes of the activations, 1 or 3.
    pub(crate) fn token_blocks(self, pairs: bool, planes: usize) -> &'static [usize] {
        let _ = (pairs, planes);
        match self.0 {
            Level::Scalar => &[1],
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => crate::arch::avx2_integer::token_blocks(pairs, planes),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => crate::arch::vnni::token_blocks(planes),
        }
    }

    /// Returns whether the processor can shuffle bytes across a whole 512-bit register (AVX-512 VBMI).
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn shuffles_bytes(self) -> bool {
        self.0 == Level::Avx512Vnni && is_x86_feature_detected!("avx512vbmi")
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512_vnni(self) -> bool {
        self.0 == Level::Avx512Vnni
    }
}
