"""Networks: base learners, one a module, and the layers, cells and operators that they and the meta-learners use."""
