//! The namespace: mount, bind and union as one tree that prints as the text that rebuilds it.
