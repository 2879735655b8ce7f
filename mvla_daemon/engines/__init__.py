"""What runs a policy's network: the manifest that describes it and the engines that infer."""
