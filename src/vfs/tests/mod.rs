//! Tests of the vfs through its public interface: what each operation promises, as claims, and
//! random histories against plain models. `testing` says which pool they run on.

mod acl;
mod attributes;
mod content;
mod control;
mod faults;
mod lifetime;
mod names;
mod promises;
mod random_content;
mod random_names;
mod threads;
