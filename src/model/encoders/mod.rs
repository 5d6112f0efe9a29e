//! The encoders, each as the operations of its forward and backward pass over one fused group.

pub mod dense;
