//! The rules of e2d: everything that decides, and nothing that touches the world.
