"""From conf/ and the command line to a frozen Spec, and from that to a Plan."""
