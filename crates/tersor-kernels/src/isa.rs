//! Which instructions the process may use, detected once.

use std::sync::OnceLock;

/// Compiles a body three times: as it stands, and for AVX2 with FMA and for AVX-512, where the compiler vectorizes it.
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

/// An instruction-set level. A value other than [`Isa::SCALAR`] only comes from [`Isa::detect`] or [`Isa::available`],
/// on a processor that has the instructions: kernels rely on that.
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
    /// Plain Rust, on every processor: it defines the results of each kernel.
    pub const SCALAR: Isa = Isa(Level::Scalar);

    /// A number that tells levels apart.
    pub(crate) fn number(self) -> u8 {
        self.0 as u8
    }

    /// The best level of this processor. `TERSOR_ISA` in the environment (`scalar`, `avx2`) asks for a lower one, for
    /// tests and bug reports. Decided once for the process.
    #[must_use]
    pub fn detect() -> Isa {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let asked = std::env::var("TERSOR_ISA").unwrap_or_default();
            let levels = Isa::available();
            let found = levels.iter().find(|l| l.name() == asked).or(levels.last());
            found.copied().unwrap_or(Isa::SCALAR)
        })
    }

    /// Every level of this processor, the best last.
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

    /// A name for reports and fingerprints: `scalar`, `avx2` or `avx512vnni`.
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

    /// [`Isa::name`] and the level that the libraries of float products and factorizations choose on this processor:
    /// what the bytes of a calibrated result depend on.
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

    /// This level, or AVX2 if it is above that: for loops that are faster with registers of 256 bits.
    pub(crate) fn at_most_avx2(self) -> Isa {
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

    /// Whether bytes of 8-bit weights are multiplied in pairs of 16 bits, for want of an instruction that sums products
    /// of bytes in 32.
    pub(crate) fn multiplies_pairs(self) -> bool {
        self.name() == "avx2"
    }

    /// Whether one instruction sums four products of bytes in 32 bits.
    pub(crate) fn multiplies_quads(self) -> bool {
        self.name() == "avx512vnni"
    }

    /// Numbers of tokens that the micro-kernels take at once, the largest first, the last 1. With `pairs`, weights have
    /// 8 bits and are multiplied in pairs of 16 bits.
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

    /// Whether bytes are shuffled across whole registers.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn shuffles_bytes(self) -> bool {
        self.0 == Level::Avx512Vnni && is_x86_feature_detected!("avx512vbmi")
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512_vnni(self) -> bool {
        self.0 == Level::Avx512Vnni
    }
}
