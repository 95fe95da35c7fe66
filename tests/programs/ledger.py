# ledger.py DATABASE NAME: moves money between accounts, with others who do the same, until it is killed; says each
# movement that is done. `ledger.py DATABASE make` makes the database, and `check` sees that nothing is lost; it says how
# many movements of each name there are.
import random, sqlite3, sys, time

path, name = sys.argv[1:3]
ACCOUNTS, EACH = 40, 1000
db = sqlite3.connect(path, isolation_level=None, timeout=300)
# Pages are written while a transaction goes on: whoever is killed leaves a journal that is needed.
db.execute('PRAGMA cache_size=2')

if name == 'make':
    assert db.execute('PRAGMA journal_mode=delete').fetchone()[0] == 'delete'
    db.execute('BEGIN')
    db.execute('CREATE TABLE accounts(id INTEGER PRIMARY KEY, amount INTEGER, note BLOB)')
    db.execute('CREATE TABLE movements(name TEXT, n INTEGER, PRIMARY KEY(name, n))')
    db.executemany('INSERT INTO accounts VALUES(?, ?, zeroblob(900))', ((n, EACH) for n in range(ACCOUNTS)))
    db.execute('COMMIT')
elif name == 'check':
    assert db.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
    assert db.execute('SELECT sum(amount), count(*) FROM accounts').fetchone() == (ACCOUNTS * EACH, ACCOUNTS)
    for name, count, last in db.execute('SELECT name, count(*), max(n) FROM movements GROUP BY name ORDER BY name'):
        assert count == last + 1, (name, count, last)
        print(name, count)
else:
    while True:
        db.execute('BEGIN IMMEDIATE')
        assert db.execute('SELECT sum(amount) FROM accounts').fetchone() == (ACCOUNTS * EACH,)
        n = db.execute('SELECT count(*) FROM movements WHERE name = ?', (name,)).fetchone()[0]
        for _ in range(4):
            one, other = random.sample(range(ACCOUNTS), 2)
            db.execute('UPDATE accounts SET amount = amount - 1, note = randomblob(900) WHERE id = ?', (one,))
            db.execute('UPDATE accounts SET amount = amount + 1, note = randomblob(900) WHERE id = ?', (other,))
        db.execute('INSERT INTO movements VALUES(?, ?)', (name, n))
        db.execute('COMMIT')
        print(n + 1)
        # Others come to their turn.
        time.sleep(random.random() / 50)
