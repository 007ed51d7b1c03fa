"""What is not the paper: a cache of the teacher's logits, mixup, several teachers, pruned students."""
