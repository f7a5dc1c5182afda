from __future__ import annotations
import os, pytest
from mailbackup.stores.local import LocalStore
from mailbackup.stores.base import Store
from mailbackup.testing.store_contract import StoreContract

class TestLocalStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path):
        self.root = str(tmp_path / "store")
        self.opened = []
        yield
        for store in self.opened:
            store.close()

    def make_store(self) -> Store:
        LocalStore.create_root(self.root)
        return LocalStore(self.root, "local")

    def reopen(self, store: Store) -> Store:
        self.opened.append(LocalStore(self.root, "again"))
        return self.opened[-1]

    def plant(self, store, key, data):
        path = os.path.join(self.root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
