//! The emulated device: kernels compiled as C++, every access checked, everything that is unordered run in a seeded order.

mod callbacks;
mod check;
mod fiber;
mod kernels;
mod machine;
mod memory;
#[cfg(test)]
pub mod sandbox;
mod shadow;

#[cfg(test)]
mod tests;
