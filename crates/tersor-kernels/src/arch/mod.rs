//! Versions of loops for instruction sets. They are called only by the safe functions of the modules beside this one.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2_integer;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod blockwise;
#[cfg(target_arch = "x86_64")]
pub(crate) mod decades;
#[cfg(target_arch = "x86_64")]
pub(crate) mod halves;
#[cfg(target_arch = "x86_64")]
pub(crate) mod lookup;
#[cfg(target_arch = "x86_64")]
pub(crate) mod peaks;
#[cfg(target_arch = "x86_64")]
pub(crate) mod shuffle;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tables;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vnni;
