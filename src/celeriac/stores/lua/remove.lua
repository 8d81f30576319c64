-- Delete all that there is of a task. Whether there was a record.
local function remove(id)
  local row = load(id)
  local written = call('DEL', META .. id) == 1
  call('DEL', TASK .. id, EVENTS .. id)
  call('ZREM', INDEX, id)
  call('ZREM', CANCELLED, id)
  if not row then
    return written
  end
  for kind, value in pairs({ [':state:'] = row[STATE], [':name:'] = row[NAME], [':queue:'] = row[QUEUE], [':owner:'] = row[OWNER] }) do
    if value ~= '' then
      call('SREM', INDEX .. kind .. value, id)
    end
  end
  return true
end
