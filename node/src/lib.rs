//! A node of the grid: identity, config, and the user's commands.
