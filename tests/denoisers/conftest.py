import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Models this small are slower on two threads, and on a busy machine a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
